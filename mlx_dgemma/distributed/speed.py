"""How fast a step is alone and shared, measured before the work begins: a slow link is told, not felt."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.shared import make_denoiser
from mlx_dgemma.diffusion.vocabulary import Query
from mlx_dgemma.distributed.exchange import Exchange
from mlx_dgemma.distributed.plan import MOST
from mlx_dgemma.model import memory
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.model.share import Share

PROBE = 2 << 20  # bytes that are sent around
REPEAT = 3  # of which the fastest counts
PREFIX = 16  # tokens


@dataclass(frozen=True)
class Speed:
    """What was measured; every rank knows the same.

    Attributes:
        alone: seconds of a denoising step on each rank by itself.
        shared: seconds of one that all share.
        gather: seconds in which 2 MB of all ranks together reach all.
    """

    alone: list[float]
    shared: float
    gather: float

    @property
    def gain(self) -> float:
        """How many times as fast as the fastest rank alone."""
        return min(self.alone) / self.shared

    def weights(self) -> list[int]:
        """Shares by speed: a hundred for the fastest."""
        return [max(1, min(MOST, round(100 * min(self.alone) / own))) for own in self.alone]

    def line(self) -> str:
        """For the terminal."""
        alone = f"{1e3 * min(self.alone):.3g} ms alone"
        if max(self.alone) > 1.1 * min(self.alone):
            alone = " and ".join(f"{1e3 * own:.3g}" for own in self.alone) + " ms alone"
        link = f"2 MB in {1e3 * self.gather:.2g} ms ({PROBE / self.gather / 1e9:.2g} GB/s)"
        return f"{len(self.alone)} ranks: a step takes {1e3 * self.shared:.3g} ms, {alone} ({self.gain:.2f} ×); {link}"

    def warning(self) -> str | None:
        """What is wrong with it, if anything is."""
        if self.gain >= 1:
            return None
        return (
            f"one machine alone would be faster ({self.gain:.2f} × so); look at the link: cables instead of Wi-Fi, "
            "their addresses in the hostfile"
        )


def measure(model: DiffusionGemma, share: Share, exchange: Exchange) -> Speed:
    """Measures; all ranks at the same time, which on one machine is slower than each by itself."""
    rows = mx.zeros((PROBE // 4 // share.size,), mx.float32)
    gather = _fastest(lambda: mx.eval(share.all_gather(rows)))
    alone = exchange.numbers(_step(model, None))
    shared = max(exchange.numbers(_step(model, share)))
    return Speed(alone, shared, max(exchange.numbers(gather)))


def _step(model: DiffusionGemma, share: Share | None) -> float:
    """Seconds of a step behind a short prefix, with soft embeddings from the one before."""
    before, model.share = model.share, share
    try:
        cache, shape = model.make_cache(), (1, model.config.canvas_length)
        prefill(model, mx.zeros((1, PREFIX), mx.int32), cache)
        noise, denoiser = SeededNoise(0, model.config.vocab_size), make_denoiser(model, cache)
        canvas, soft = noise.tokens(shape), None

        def step() -> None:
            nonlocal soft
            prediction = denoiser.finish(denoiser.begin(canvas, soft), Query(0.8, noise.uniform(shape), True))
            soft = prediction.soft
            memory.finish([prediction.proposal, prediction.entropy, *([] if soft is None else [soft])])

        step()  # compiles
        return _fastest(step)
    finally:
        model.share = before


def _fastest(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
