"""One denoising step side by side with mlx-vlm: time, transient memory, primitives, bytes.

    pip install mlx-vlm && python -m benchmarks.step
    python -m benchmarks.step --rows    only the second table, without mlx-vlm

Same weights, prefix and canvas length, float32, the entropy-bound sampler on both sides; whole canvases of --steps
denoising steps, ours and theirs in turn, and the ratio of each pair. Transient memory is what a canvas needs beyond
what is alive before it (weights and prefix). Primitives and bytes are counted in the exported graph of one step in the
middle of a canvas (see `benchmarks.graph`), so no machine's noise is in them; ours is the graph that a GPU would get.

The second table is of our steps that compute some positions of a canvas only, evenly spread: 256, 192, 128, 96, 64 and
32 of 256 in turn, the median ratio to the full step of the same round, the ratio of floors on this machine
(`mlx_dgemma.bench.roofline`), operations by the same count, and bytes of the graph.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import mlx.core as mx

from benchmarks.graph import count
from benchmarks.models import SMALL_TEXT, config_dict, write_random
from benchmarks.rivals import MlxVlm
from mlx_dgemma import GenerationConfig, load
from mlx_dgemma.bench import machine
from mlx_dgemma.bench.roofline import Widths
from mlx_dgemma.bench.rows import RowSteps, active_rows, measure_rows
from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.vocabulary import Query
from mlx_dgemma.model import cpu, fused
from mlx_dgemma.model.cache import Slots
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.terminal.cli import Parser, exit_code, require

CANVAS, VOCABULARY = 256, SMALL_TEXT["vocab_size"]
ROWS_HEADS = "| prefix | active rows | ratio | step, ms | ratio | floor, ratio | GFLOP | MB | ratio |"


class Ours:
    """This package over the same prefix."""

    def __init__(self, folder: Path, prompt: mx.array):
        self.model, _ = load(folder)
        self.cache = self.model.make_cache()
        prefill(self.model, prompt, self.cache)
        self.denoiser = ModelDenoiser(self.model, self.cache)

    def canvas_seconds(self, steps: int) -> float:
        """Seconds for one canvas of `steps` denoising steps."""
        config = GenerationConfig(max_denoising_steps=steps)
        began = time.perf_counter()
        for _ in denoise_canvas(self.denoiser, config, SeededNoise(0, VOCABULARY), (1, CANVAS)):
            pass
        return time.perf_counter() - began

    def step(self, canvas: mx.array, soft: mx.array, earlier: mx.array, slots: Slots | None = None) -> list[mx.array]:
        """The graph of one step in the middle of a canvas, noise included; with slots, of these positions alone."""
        noise = SeededNoise(0, VOCABULARY)
        query = Query(0.7, noise.uniform(canvas.shape), wants_soft=True)
        prediction = self.denoiser.finish(self.denoiser.begin(canvas, soft, slots), query)
        accepted = sampling.accept(prediction.entropy, 0.1)
        following = sampling.renoise(prediction.proposal, accepted, noise.tokens(canvas.shape))
        stable = (prediction.argmax == earlier).all()
        return [following, prediction.soft, prediction.argmax, prediction.entropy.mean(), stable]

    def regions(self) -> tuple:
        """Its functions under `mx.compile` on a GPU."""
        return tuple((fused, name) for name in fused.HELPERS)


def transient(canvas_seconds: Callable[[int], float]) -> int:
    """Bytes that a canvas of three steps needs beyond what is alive before it."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    canvas_seconds(3)
    return mx.get_peak_memory() - before


def compare(folder: Path, prefix: int, steps: int, repeat: int) -> None:
    """Prints one row per figure: ours, theirs, ratio."""
    prompt = mx.random.randint(0, VOCABULARY, (1, prefix), key=mx.random.key(1))
    ours, theirs = Ours(folder, prompt), MlxVlm(folder, prompt, chunk=512)
    sides = (ours, theirs)
    for side in sides:
        side.canvas_seconds(2)  # the first call compiles, on their side
    transients = [transient(side.canvas_seconds) for side in sides]
    pairs = [[side.canvas_seconds(steps) / steps for side in sides] for _ in range(repeat)]
    times = [statistics.median(pair[i] for pair in pairs) for i in (0, 1)]
    ratio = statistics.median(a / b for a, b in pairs)
    ids, soft = mx.zeros((1, CANVAS), mx.int32), mx.zeros((1, CANVAS, SMALL_TEXT["hidden_size"]))
    with mock.patch.object(cpu, "on_cpu", return_value=False):
        works = [count(side.step, ids, soft, ids, regions=side.regions()) for side in sides]
    row(prefix, "step, ms", [1e3 * t for t in times], ratio)
    row(prefix, "transient memory, MB", [m / 1e6 for m in transients])
    row(prefix, "primitives", [w.count for w in works])
    row(prefix, "bytes read and written, MB", [w.moved / 1e6 for w in works])


def compare_rows(folder: Path, prefix: int, repeat: int) -> None:
    """Prints one row per number of active rows."""
    ours = Ours(folder, mx.random.randint(0, VOCABULARY, (1, prefix), key=mx.random.key(1)))
    config, noise = ours.model.config, SeededNoise(0, VOCABULARY)
    rounds = measure_rows(RowSteps(ours.denoiser, noise, CANVAS), repeat)
    widths = Widths.of(config, (), 32)
    found = active_rows(config, widths, prefix, machine.measure(mx.float32), rounds)
    moved = [rows_work(ours, own.rows) for own in found]
    for own, nbytes in zip(found, moved, strict=True):
        ratios = f"{own.row_ratio:.3f} | {own.step_ms:.0f} | {own.step_ratio:.2f} | {own.floor_ratio:.2f}"
        amounts = f"{own.gigaflop:.2f} | {nbytes / 1e6:.0f} | {nbytes / moved[0]:.2f}"
        print(f"| {prefix} | {own.rows} | {ratios} | {amounts} |", flush=True)


def rows_work(ours: Ours, rows: int) -> int:
    """Bytes read and written in the graph of a step over so many rows."""
    slots = None if rows == CANVAS else Slots(mx.arange(rows) * CANVAS // rows, CANVAS)
    ids, soft = mx.zeros((1, rows), mx.int32), mx.zeros((1, rows, SMALL_TEXT["hidden_size"]))
    before = ours.cache.snapshot()
    with mock.patch.object(cpu, "on_cpu", return_value=False):
        work = count(lambda *inputs: ours.step(*inputs, slots), ids, soft, ids, regions=ours.regions())
    ours.cache.restore(before)  # or the next graph would hold this one's overlays
    return work.moved


def row(prefix: int, name: str, values: list[float], ratio: float | None = None) -> None:
    ours, theirs = values
    ratio = ours / theirs if ratio is None else ratio
    print(f"| {prefix} | {name} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", type=int, nargs="+", default=[128, 8192], help="tokens (default: 128 8192)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps per canvas (default: 4)")
    parser.add_argument("--repeat", type=int, default=7, help="canvases of each side (default: 7)")
    parser.add_argument("--rows", action="store_true", help="only our steps with fewer active rows")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args), "interrupted")


def run(args: argparse.Namespace) -> int:
    """Prints the tables."""
    if not args.rows:
        require("mlx-vlm")
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), config_dict(CANVAS))
        if not args.rows:
            print("| prefix | figure | mlx-dgemma | mlx-vlm | ratio |\n|---|---|---|---|---|", flush=True)
            for prefix in args.prefix:
                compare(Path(folder), prefix, args.steps, args.repeat)
            print()
        print(ROWS_HEADS, "|---|---|---|---|---|---|---|---|---|", sep="\n", flush=True)
        for prefix in args.prefix:
            compare_rows(Path(folder), prefix, args.repeat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
