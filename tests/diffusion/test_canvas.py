"""The canvas loop with a made-up denoiser: order of draws, events, stopping, what is committed."""

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import DGemmaError, GenerationConfig, generate_text, load
from mlx_dgemma.diffusion import canvas as loop
from mlx_dgemma.diffusion import denoiser as passes
from mlx_dgemma.diffusion import state
from mlx_dgemma.diffusion.canvas import denoise_canvas, generate_canvases
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.diffusion.vocabulary import from_logits
from mlx_dgemma.model import memory
from mlx_dgemma.model.prefill import prefill
from tests.conftest import CANVAS, ReplayedNoise

SHAPE, V = (1, 6), 10


def sure_of(target: list[int], sharpness: float = 50.0):
    """A denoiser that knows the answer, whatever it is shown."""
    logits = sharpness * (mx.array(target)[None, :, None] == mx.arange(V)).astype(mx.float32)
    return lambda canvas, previous: mx.broadcast_to(logits, (canvas.shape[0], *logits.shape[1:]))


class MadeUp:
    """A denoiser from a function of canvas and previous tempered logits to logits."""

    def __init__(self, logits_of):
        self.logits_of, self.begun, self.finished, self.cancelled = logits_of, 0, 0, 0

    def begin(self, canvas, soft, slots=None):
        self.begun += 1
        return canvas, soft

    def finish(self, begun, query):
        self.finished += 1
        logits = self.logits_of(*begun)
        return from_logits(logits, query, soft=logits / query.temperature)

    def cancel(self):
        self.cancelled += 1


def steps(logits_of, noise=None, shape=SHAPE, **settings) -> list[DenoisingStep]:
    """A whole canvas."""
    config = GenerationConfig(**settings)
    return list(denoise_canvas(MadeUp(logits_of), config, noise or ReplayedNoise(0, V), shape))


def test_a_sure_denoiser_needs_two_steps():
    events = steps(sure_of([1, 2, 3, 4, 5, 6]))
    assert [e.step for e in events] == [1, 2]
    assert [e.finished for e in events] == [False, True]
    assert events[-1].draft.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert events[1].canvas.tolist() == [[1, 2, 3, 4, 5, 6]]  # all were accepted
    assert events[0].accepted_count == 6


def test_temperature_goes_from_t_max_towards_t_min():
    events = steps(lambda c, p: mx.zeros((*c.shape, V)), max_denoising_steps=4, t_max=0.8, t_min=0.4)
    np.testing.assert_allclose([e.temperature for e in events], [0.8, 0.7, 0.6, 0.5])
    assert [e.remaining for e in events] == [4, 3, 2, 1]


def test_self_conditioning_gets_what_the_previous_step_left():
    seen = []

    def denoiser(canvas, previous):
        seen.append(previous)
        return mx.full((*canvas.shape, V), float(len(seen)))

    events = steps(denoiser, max_denoising_steps=3)
    assert seen[0] is None
    for index, previous in enumerate(seen[1:]):
        np.testing.assert_allclose(np.array(previous), (index + 1) / events[index].temperature, rtol=1e-6)


@pytest.mark.parametrize(("choice", "per_step"), [("categorical", ["uniform", "tokens"]), ("argmax", ["tokens"])])
def test_order_of_draws(choice, per_step):
    noise = ReplayedNoise(0, V)
    count = len(steps(sure_of([1] * 6), noise, token_choice=choice))
    assert noise.draws == ["tokens", *per_step * count]


def test_nothing_is_frozen():
    """A position that was accepted is renoised as soon as it becomes unsure."""
    canvases = []

    def denoiser(canvas, previous):
        canvases.append(canvas.tolist()[0])
        sharp = 50.0 if len(canvases) == 1 else 0.0
        return mx.concatenate([mx.zeros((1, 5, V)), sharp * (mx.arange(V) == 9)[None, None]], axis=1)

    events = steps(denoiser, max_denoising_steps=3, entropy_bound=0.001)
    assert canvases[1][5] == 9 and events[0].accepted[0, 5].item()
    assert not all(e.accepted[0, 5].item() for e in events[1:])


def test_rows_of_a_batch_finish_on_their_own():
    """Row 0 is sure from the start, row 1 changes its mind at every step but the last two: row 0 keeps its draft."""
    calls = []

    def denoiser(canvas, previous):
        calls.append(1)
        second = [min(len(calls), 4)] * 6
        first = [1] * 6 if len(calls) <= 2 else [7] * 6
        return 50.0 * (mx.array([first, second])[..., None] == mx.arange(V)).astype(mx.float32)

    events = steps(denoiser, shape=(2, 6))
    assert events[-1].draft.tolist() == [[1] * 6, [4] * 6]
    assert len(events) == 5


def test_one_host_read_a_step(monkeypatch):
    """Work is started once a step, never waited for, and the one value that the loop asks for is the summary."""
    started = []
    monkeypatch.setattr(memory, "start", lambda arrays: (started.append(1), mx.async_eval(arrays)))
    monkeypatch.setattr(mx, "eval", lambda *a: pytest.fail("the loop must not wait"))
    reads = []
    read = state.Pending.read
    monkeypatch.setattr(state.Pending, "read", lambda self: (reads.append(1), read(self))[1])
    events = steps(lambda c, p: mx.zeros((*c.shape, V)), max_denoising_steps=5)
    assert len(started) == len(reads) == len(events) == 5


def test_the_next_step_is_built_before_this_ones_flags_are_read(monkeypatch):
    denoiser, seen = MadeUp(sure_of([1, 2, 3, 4, 5, 6])), []
    read = state.Pending.read
    monkeypatch.setattr(state.Pending, "read", lambda self: (seen.append(denoiser.begun), read(self))[1])
    noise = ReplayedNoise(0, V)
    events = list(denoise_canvas(denoiser, GenerationConfig(), noise, SHAPE))
    assert len(events) == 2 and seen == [2, 3]  # the third was built while the second ran
    assert (denoiser.finished, denoiser.cancelled) == (2, 1)  # and given up, before it drew anything
    assert noise.draws == ["tokens", *["uniform", "tokens"] * 2]


@pytest.mark.parametrize(("on_cpu", "submitted"), [(True, 1), (False, 2)])
def test_a_gpu_gets_the_next_step_before_the_event_is_handed_out_and_a_cpu_after(monkeypatch, on_cpu, submitted):
    monkeypatch.setattr(loop.cpu, "on_cpu", lambda: on_cpu)
    denoiser = MadeUp(lambda c, p: mx.zeros((*c.shape, V)))
    stream = denoise_canvas(denoiser, GenerationConfig(max_denoising_steps=3), ReplayedNoise(0, V), SHAPE)
    next(stream)
    assert denoiser.finished == submitted
    stream.close()
    assert denoiser.cancelled == (1 if on_cpu else 0)  # what was only begun is given up


def test_a_step_that_is_given_up_leaves_the_prefix_usable(model):
    """After a canvas stops early, encoding it gives the same prefix as if no further step had been begun."""
    noise = ReplayedNoise(3)
    cache, plain = model.make_cache(), model.make_cache()
    for c in (cache, plain):
        prefill(model, mx.array([[1, 2, 3]]), c)
    config = GenerationConfig(confidence_threshold=100.0, stability_threshold=0)  # stops at once
    events = list(denoise_canvas(ModelDenoiser(model, cache), config, noise, (1, CANVAS)))
    assert len(events) == 1
    for c in (cache, plain):
        prefill(model, events[-1].draft, c)
    for a, b in zip(cache.layers, plain.layers, strict=True):
        assert mx.array_equal(a.keys[:, :, : a.length], b.keys[:, :, : b.length])


def test_no_step_of_the_loop_copies_the_prefix(model):
    """By memory: a loop over a long prefix needs no more than the same loop over a short one, plus its scores."""

    def transient(length: int) -> tuple[int, int]:
        cache = model.make_cache()
        prefill(model, mx.array([[5] * length]), cache)
        denoiser, config = ModelDenoiser(model, cache), GenerationConfig(max_denoising_steps=5)
        list(denoise_canvas(denoiser, config, ReplayedNoise(0), (1, CANVAS)))  # may still have to make room
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        list(denoise_canvas(denoiser, config, ReplayedNoise(0), (1, CANVAS)))
        return mx.get_peak_memory() - before, cache.nbytes

    short, long = transient(16), transient(480)
    scores = 4 * 4 * CANVAS * 480 * 2  # four heads, float32, before and after softmax, of one layer at a time
    assert long[0] - short[0] < 2 * scores + long[1] / 8


def test_canvases_are_stitched_between_commits(model):
    cache = model.make_cache()
    prefill(model, mx.array([[1, 2, 3]]), cache)
    config = GenerationConfig(max_denoising_steps=2)
    lengths = []
    for event in generate_canvases(model, cache, config, ReplayedNoise(0), max_canvases=3):
        if isinstance(event, CommittedCanvas):
            lengths.append(cache.length)
    assert lengths == [3, 3 + CANVAS, 3 + 2 * CANVAS]  # committed first, encoded when the next one begins


def test_generation_ends_where_the_positions_do(model):
    room = model.config.max_position_embeddings
    cache = model.make_cache()
    prefill(model, mx.array([[1] * (room - CANVAS - 3)]), cache)
    events = generate_canvases(model, cache, GenerationConfig(max_denoising_steps=1), ReplayedNoise(0), max_canvases=9)
    assert sum(isinstance(e, CommittedCanvas) for e in events) == 1


def test_denoising_leaves_the_prefix_as_it_was(model):
    cache = model.make_cache()
    prefill(model, mx.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]), cache)
    before = [np.array(layer.keys[:, :, : layer.length]) for layer in cache.layers]
    mx.eval(model.denoise(mx.array([[3] * CANVAS]), cache))
    after = [np.array(layer.keys[:, :, : layer.length]) for layer in cache.layers]
    assert cache.length == 10
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_step_copies_the_prefix(model):
    """Canvas keys and values are written in place: after a step every buffer still lies where it lay."""

    def addresses() -> list[int]:
        return [np.array(a, copy=False).__array_interface__["data"][0] for a in cache.arrays()]

    cache = model.make_cache()
    prefill(model, mx.array([[5] * 480]), cache)
    previous = None
    for step in range(4):
        canvas = mx.array([[3 + step] * CANVAS])
        previous = model.denoise(canvas, cache, previous)
        mx.eval(previous)
        if step == 0:  # the first one may make room
            before = addresses()
    assert addresses() == before


def test_an_output_that_is_not_a_number_ends_the_run_at_its_first_step():
    denoiser = MadeUp(lambda c, p: mx.full((*c.shape, V), mx.nan))
    stream = denoise_canvas(denoiser, GenerationConfig(), ReplayedNoise(0, V), SHAPE)
    with pytest.raises(DGemmaError, match="canvas 1: the model's output is not a number"):
        next(stream)


def test_a_model_with_damaged_weights_is_told(folder):
    damaged = load(folder)[0]
    damaged.model.decoder.norm.weight = damaged.model.decoder.norm.weight * mx.nan
    with pytest.raises(DGemmaError, match="not a number"):
        generate_text(damaged, None, [1, 2])


@pytest.mark.parametrize("calls", range(1, 5))
def test_an_interrupt_while_a_step_is_started_stays_an_interrupt(model, monkeypatch, calls):
    cache, started = model.make_cache(), []
    model.encode(mx.array([[5, 6]]), cache)
    start = memory.start

    def interrupted(arrays):
        started.append(arrays)
        if len(started) == calls:
            raise KeyboardInterrupt
        start(arrays)

    monkeypatch.setattr(loop.memory, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(generate_canvases(model, cache, GenerationConfig(max_denoising_steps=8), ReplayedNoise(0), 1))


def test_the_last_buffers_are_given_back_before_the_last_event(model, monkeypatch):
    order = []
    monkeypatch.setattr(loop.mx, "clear_cache", lambda: order.append("cleared"))
    cache = model.make_cache()
    model.encode(mx.array([[5, 6]]), cache)
    for event in generate_canvases(model, cache, GenerationConfig(max_denoising_steps=2), ReplayedNoise(0), 1):
        order.append(type(event).__name__)
    assert order[-2:] == ["cleared", "CommittedCanvas"]


class Wired:
    """A Mac's wired limit, in bytes; `limits` are all that it has been."""

    def __init__(self, monkeypatch, recommended: int):
        self.limits = [7]
        monkeypatch.setattr(memory.mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(memory.mx, "device_info", lambda: {"max_recommended_working_set_size": recommended})
        monkeypatch.setattr(memory.mx, "set_wired_limit", lambda n: (self.limits.append(n), self.limits[-2])[1])


def canvases(model, length: int = 2):
    """A run over a prefix of that length, and the bytes that it wants wired."""
    cache = model.make_cache()
    model.encode(mx.array([[5] * length]), cache)
    wanted = model.nbytes + cache.nbytes + memory.MARGIN
    return generate_canvases(model, cache, GenerationConfig(), ReplayedNoise(0), 2), wanted


def test_a_macs_memory_is_wired_while_canvases_are_made_however_that_ends(model, monkeypatch):
    mac = Wired(monkeypatch, 64 << 30)
    events, wanted = canvases(model)
    next(events)
    assert mac.limits == [7, wanted]
    events.close()
    assert mac.limits[2:] == [7]
    events, _ = canvases(model)
    next(events)
    del events  # abandoned
    assert mac.limits[-1] == 7
    assert len(mac.limits) == 5


def test_no_more_is_wired_than_the_gpu_may_hold(model, monkeypatch):
    mac = Wired(monkeypatch, 900)
    next(canvases(model)[0])
    assert max(mac.limits) == 900


def test_two_runs_at_a_time_share_the_wired_limit(model, monkeypatch):
    mac = Wired(monkeypatch, 64 << 30)
    (first, _), (second, wanted) = canvases(model), canvases(model, 40)
    next(first), next(second)
    first.close()
    assert mac.limits[-1] == wanted  # the second still has its own
    second.close()
    assert mac.limits[-1] == 7


def test_wiring_can_be_switched_off(model, monkeypatch):
    mac = Wired(monkeypatch, 64 << 30)
    memory.use_wiring(False)
    try:
        next(canvases(model)[0])
    finally:
        memory.use_wiring(True)
    assert mac.limits == [7]


def test_an_abandoned_run_says_nothing_when_the_interpreter_ends():
    code = (
        "import mlx.core as mx; from mlx_dgemma import Engine, Request\n"
        "mx.metal.is_available = lambda: True\n"
        "mx.device_info = lambda: {'max_recommended_working_set_size': 1 << 34}\n"
        "mx.set_wired_limit = lambda n: 0\n"
        "stream = Engine.load().stream(Request('count 18 to 50')); next(stream)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("gigabytes", "told"), [(17.9, False), (18.1, True)])
def test_weights_that_leave_too_little_are_warned_of(monkeypatch, gigabytes, told):
    Wired(monkeypatch, 20_000_000_000)
    warning = memory.warning(int(gigabytes * 1e9))
    assert (warning is not None) == told
    assert not told or "18.1 of the 20.0 GB" in warning


def test_a_cutoff_makes_sure_positions_sparse_from_the_second_step_on(monkeypatch):
    from mlx_dgemma import load, stream_generate

    queries, predict = [], passes.predict
    monkeypatch.setattr(passes, "predict", lambda h, t, q, block: queries.append(q) or predict(h, t, q, block))
    model, tokenizer = load()
    texts = []
    for cutoff in (None, 10.0):
        config = GenerationConfig(soft_embedding_cutoff=cutoff)
        texts.append(list(stream_generate(model, tokenizer, "sudoku 1..4..1.2....3.1", config))[-1].text)
    assert texts[0] == texts[1]
    exact, cut = [q for q in queries if q.cutoff is None], [q for q in queries if q.cutoff == 10.0]
    assert all(q.rows is None for q in exact) and len(exact) == len(cut)
    assert cut[0].rows is None  # nothing is known yet
    assert all(sorted(q.rows.order.tolist()) == list(range(64)) for q in cut[1:])
    assert cut[-1].rows.dense < 64
