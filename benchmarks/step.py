"""One denoising step side by side with mlx-vlm: time, transient memory, primitives, bytes.

    pip install mlx-vlm && python -m benchmarks.step

Same weights, prefix and canvas length, float32, the entropy-bound sampler on both sides; whole canvases of --steps
denoising steps, ours and theirs in turn, and the ratio of each pair. Transient memory is what a canvas needs beyond
what is alive before it (weights and prefix). Primitives and bytes are counted in the exported graph of one step in the
middle of a canvas (see `benchmarks.graph`), so no machine's noise is in them; ours is the graph that a GPU would get.
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
from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.vocabulary import Query
from mlx_dgemma.model import cpu, fused
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.terminal.cli import Parser, exit_code, require

CANVAS, VOCABULARY = 256, SMALL_TEXT["vocab_size"]


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

    def step(self, canvas: mx.array, soft: mx.array, earlier: mx.array) -> list[mx.array]:
        """The graph of one step in the middle of a canvas, noise included."""
        noise = SeededNoise(0, VOCABULARY)
        query = Query(0.7, noise.uniform(canvas.shape), wants_soft=True)
        prediction = self.denoiser.finish(self.denoiser.begin(canvas, soft), query)
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


def row(prefix: int, name: str, values: list[float], ratio: float | None = None) -> None:
    ours, theirs = values
    ratio = ours / theirs if ratio is None else ratio
    print(f"| {prefix} | {name} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", type=int, nargs="+", default=[128, 8192], help="tokens (default: 128 8192)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps per canvas (default: 4)")
    parser.add_argument("--repeat", type=int, default=7, help="canvases of each side (default: 7)")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args), "interrupted")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    require("mlx-vlm")
    print("| prefix | figure | mlx-dgemma | mlx-vlm | ratio |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), config_dict(CANVAS))
        for prefix in args.prefix:
            compare(Path(folder), prefix, args.steps, args.repeat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
