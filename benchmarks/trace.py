"""What recording a trace costs, of a denoising step: the figure of docs/traces-and-reports.md.

Of the embedded checkpoint: the recorder's own time for each event beside that step's, medians of what alternates; then
saving, for a long run of the published size (10 canvases of 48 steps, 256 positions, 262,144 possible tokens).

python -m benchmarks.trace
"""

import statistics
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_dgemma import Engine, GenerationConfig, Request
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.trace.recorder import Recorder

PROMPT, RUNS = "sort dcba", 4
CANVASES, STEPS, POSITIONS, VOCABULARY = 10, 48, 256, 262_144


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def recording(engine: Engine) -> tuple[float, float]:
    """Seconds of the recorder and of the step that it recorded, medians."""
    settings, costs, steps = GenerationConfig(confidence_threshold=1e-9), [], []
    for seed in range(RUNS):
        request = Request(PROMPT, settings=settings, seed=seed)
        recorder = Recorder(engine, request)
        for event in engine.stream(request):
            costs.append(seconds(lambda event=event, recorder=recorder: recorder.add(event)))
        steps += recorder.trace().seconds.tolist()
    return statistics.median(costs), statistics.median(steps)


class Names:
    """A tokenizer with a text for every id of the published vocabulary."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return f" t{ids[0]}"

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"▁t{token}" for token in ids]


def long_run(engine: Engine) -> tuple[float, float, float]:
    """A made-up run of random tokens: seconds per recorded step, seconds to save, bytes of the file."""
    recorder = Recorder(Engine(engine.model, Names()), Request([1]))
    random = np.random.default_rng(0)
    costs, shape = [], (1, POSITIONS)
    for index in range(CANVASES * STEPS):
        ids = mx.array(random.integers(0, VOCABULARY, shape, np.int32))
        event = DenoisingStep(
            index // STEPS, index % STEPS + 1, STEPS - index % STEPS, 0.5, ids, ids, mx.array(random.random(shape)),
            mx.zeros(shape), ids > 0, POSITIONS, 0.5, index % STEPS + 1 == STEPS,
        )  # fmt: skip
        mx.eval(event.entropy, event.accepted)
        costs.append(seconds(lambda event=event: recorder.add(event)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.npz"
        return statistics.median(costs), seconds(lambda: recorder.trace().save(path)), path.stat().st_size


def main() -> None:
    engine = Engine.load()
    cost, step = recording(engine)
    print(f"embedded: {1e6 * cost:.0f} µs of a step's {1e3 * step:.1f} ms: {cost / step:.2%}")
    cost, save, size = long_run(engine)
    print(f"{CANVASES} canvases × {STEPS} steps × {POSITIONS} positions: {1e6 * cost:.0f} µs a step; ", end="")
    print(f"saved in {save:.2f} s ({1e3 * save / CANVASES / STEPS:.1f} ms a step), {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
