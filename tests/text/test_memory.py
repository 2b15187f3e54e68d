"""Memory: running out of it is one line, a run gives its buffers back, and a machine that changed is noticed."""

import mlx.core as mx
import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma

METAL = "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError…)"
ASK = {
    "generate": lambda engine: engine.generate(Request("roman 3")),
    "samples": lambda engine: engine.samples(Request("roman 3", samples=2)),
    "choose": lambda engine: engine.choose(Request("roman 3"), "{?}", ["III", "IV"]),
    "score": lambda engine: engine.score(Request("roman 3"), "III"),
}


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def failing(monkeypatch, error: Exception) -> None:
    def fail(self, *arguments):
        raise error

    monkeypatch.setattr(DiffusionGemma, "denoise_hidden", fail)
    monkeypatch.setattr(DiffusionGemma, "_encode", fail)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize(
    "error", [RuntimeError(METAL), RuntimeError("[malloc] Unable to allocate 9 bytes."), MemoryError()], ids=str
)
def test_out_of_memory_is_one_line_that_says_what_is_smaller(engine, monkeypatch, ask, error):
    failing(monkeypatch, error)
    with pytest.raises(DGemmaError, match=r"out of memory: \d+\.\d GB were in use; take a shorter prompt") as told:
        ask(engine)
    assert "\n" not in str(told.value)


def test_any_other_failure_is_left_alone(engine, monkeypatch):
    failing(monkeypatch, RuntimeError("[broadcast_shapes] no"))
    with pytest.raises(RuntimeError, match="broadcast_shapes"):
        engine.generate(Request("roman 3"))


def test_a_mac_tells_how_much_its_gpu_may_hold(engine, monkeypatch):
    failing(monkeypatch, RuntimeError(METAL))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 16_000_000_000})
    monkeypatch.setattr(mx, "set_wired_limit", lambda nbytes: 0)
    with pytest.raises(DGemmaError, match=r"of the 16\.0 GB that the GPU may hold"):
        engine.generate(Request("roman 3"))


def test_a_model_loaded_for_a_gpu_does_not_run_on_a_cpu(folder, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("mlx_dgemma.model.cpu.on_cpu", lambda: False)
        engine = Engine.load(folder, dtype=mx.bfloat16)
    with pytest.raises(DGemmaError, match=r"loaded for a GPU, in bfloat16, and MLX's default device is the CPU now"):
        engine.prepare(Request([1, 2]))


def test_memory_is_flat_over_many_different_requests(engine):
    """Sampled during them, after each canvas: what is alive and what MLX keeps do not grow from request to request."""
    prompts = ["upper " + "abcdefgh " * n for n in (1, 30, 2, 60, 5, 90)] + [
        "count 18 to 50",
        "sudoku 1...............",
    ]
    seen: list[list[int]] = []
    for number in range(5 * len(prompts)):
        steps = GenerationConfig(max_denoising_steps=2 + number % 3, max_new_tokens=64 * (1 + number % 2))
        request = Request(prompts[number % len(prompts)], settings=steps, seed=number)
        held = [mx.get_active_memory() + mx.get_cache_memory() for _ in engine.stream(request)]
        if number % len(prompts) == 0:
            seen.append([])
        seen[-1].append(max(held))
    rounds = [max(held) for held in seen]
    assert max(rounds[2:]) <= 1.05 * max(rounds[:2])
