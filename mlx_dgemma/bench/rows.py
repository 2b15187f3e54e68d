"""Whole denoising steps with fewer active rows, measured in turn, beside what the rows and the roofline say."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import mlx.core as mx

from mlx_dgemma.bench.chips import Chip
from mlx_dgemma.bench.predictions import row_counts
from mlx_dgemma.bench.roofline import Widths, floor_seconds, step_stages
from mlx_dgemma.diffusion.denoiser import Forward, ModelDenoiser
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.settling import Settling
from mlx_dgemma.diffusion.state import CanvasState
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.model.config import ModelConfig

Result = TypeVar("Result")
MIDDLE, MOST = 24, 48  # denoising steps that remain, of how many: a step in the middle of a canvas


@dataclass(frozen=True)
class ActiveRows:
    """A step that computes some rows of a canvas; the first of a list computes all of them.

    Attributes:
        rows: how many.
        row_ratio: over the canvas.
        step_ms: median.
        step_ratio: median of the ratios to the full step of the same round.
        floor_ms: of its operations and bytes, on the measured machine.
        floor_ratio: over the full step's.
        gigaflop: operations, 1e9.
        megabytes: read, 1e6.
    """

    rows: int
    row_ratio: float
    step_ms: float
    step_ratio: float
    floor_ms: float
    floor_ratio: float
    gigaflop: float
    megabytes: float


class RowSteps:
    """Steps of one canvas behind a prefix, each over as many of its positions as is asked for, evenly spread."""

    def __init__(self, denoiser: ModelDenoiser, noise: SeededNoise, canvas: int):
        # so many equal predecessors cannot be: the canvas is never done
        config = GenerationConfig(max_denoising_steps=MOST, stability_threshold=MOST, settling=Settling())
        self.size = canvas
        self.state = CanvasState(denoiser, config, noise, (1, canvas), 0, Steering(None, None))
        for _ in range(2):  # keys and values of all positions; then soft embeddings
            self.seconds(canvas)

    def seconds(self, rows: int) -> float:
        """Of a whole step: layers, vocabulary, acceptance, the next canvas, and the host's reading of it."""
        state = self.state
        assert state.settled is not None
        state.settled.computed = None if rows == self.size else [i * self.size // rows for i in range(rows)]
        state.earlier = state.earlier[-1:]
        began = time.perf_counter()
        _answered(state.submit(state.forward(), MIDDLE)).read()
        return time.perf_counter() - began


def _answered(work: Generator[Forward[mx.array], None, Result]) -> Result:
    """The result of work whose passes are answered at once."""
    while True:
        try:
            next(work).advance()
        except StopIteration as end:
            result: Result = end.value
            return result


def measure_rows(steps: RowSteps, rounds: int) -> list[list[float]]:
    """Seconds by round of each of `row_counts`, largest first, in turn, after one round that does not count."""
    counts = row_counts(steps.size)
    return [[steps.seconds(rows) for rows in counts] for _ in range(1 + rounds)][1:]


def active_rows(
    config: ModelConfig, widths: Widths, prefix: int, chip: Chip, rounds: Sequence[Sequence[float]]
) -> tuple[ActiveRows, ...]:
    """What `measure_rows` found, beside the roofline."""
    found: list[ActiveRows] = []
    for i, rows in enumerate(row_counts(config.canvas_length)):
        stages = step_stages(config, widths, prefix, rows=rows)
        floor = 1000 * floor_seconds(stages, chip)
        found.append(
            ActiveRows(
                rows=rows,
                row_ratio=rows / config.canvas_length,
                step_ms=1000 * median(times[i] for times in rounds),
                step_ratio=median(times[i] / times[0] for times in rounds),
                floor_ms=floor,
                floor_ratio=floor / (found[0].floor_ms if found else floor),
                gigaflop=sum(stage.flops for stage in stages) / 1e9,
                megabytes=sum(stage.nbytes for stage in stages) / 1e6,
            )
        )
    return tuple(found)
