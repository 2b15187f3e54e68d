"""The positions of a canvas that have settled, and those that the next step computes; see `settling`."""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.settling import Settling
from mlx_dgemma.model.cache import Slots

TILES = 16  # of a canvas: the number of computed positions is a multiple of a tile, so that few sizes occur


@dataclass(frozen=True)
class Told:
    """What a step that was read tells about its positions and rows.

    Attributes:
        calm: (B, C) bool; accepted, as in the step before, and below the entropy. Of positions that were not computed,
            what does not matter.
        ready: (B,) bool; whether the stopping rule holds.
        finished: (B,) bool; whether a row is done.
    """

    calm: np.ndarray
    ready: np.ndarray
    finished: np.ndarray


class Settled:
    """Which positions of a canvas (B, C) have settled; on the host, as it decides the shape of the next step."""

    def __init__(self, rule: Settling, shape: tuple[int, int]):
        self.rule, self.size = rule, shape[1]
        self.calm_steps = np.zeros(shape, int)
        self.failed = 0
        self.is_confirming = False
        self._next: list[int] | None = None  # computed positions of the next step; None: all

    @property
    def slots(self) -> Slots | None:
        """The positions that the next step computes; None for all."""
        return None if self._next is None else Slots(mx.array(self._next), self.size)

    def learn(self, told: Told, *, is_last: bool) -> None:
        """Takes what a step came to; `is_last` if the next one is the canvas' last."""
        computed = np.ones(self.size, bool)
        if self._next is not None:
            computed[:] = False
            computed[self._next] = True
        had_settled = self._mask()
        counts = np.where(told.calm, self.calm_steps + 1, 0)
        self.calm_steps = np.where(computed, counts, self.calm_steps)
        if self._next is None and self.is_confirming:  # and not finished, or nobody would ask for the next step
            self.failed += 1
            self._wake(had_settled & ~told.calm)
        going_on = ~told.finished
        self.is_confirming = bool((told.ready & going_on).any())
        whole = is_last or self.is_confirming or self.failed > self.rule.failures
        self._next = None if whole else self._positions((~self._mask()[going_on]).any(axis=0))

    def _mask(self) -> np.ndarray:
        mask: np.ndarray = self.calm_steps >= self.rule.steps
        return mask

    def _wake(self, changed: np.ndarray) -> None:
        """Positions around those that a confirming step changed (B, C)."""
        for shift in range(-self.rule.neighbours, self.rule.neighbours + 1):
            beside = np.roll(changed, shift, axis=1)
            if shift > 0:
                beside[:, :shift] = False
            elif shift < 0:
                beside[:, shift:] = False
            self.calm_steps[beside] = 0

    def _positions(self, needed: np.ndarray) -> list[int] | None:
        """The needed ones (C,), filled up to a whole tile with those that settled last; None for all of them."""
        tile = math.ceil(self.size / TILES)
        wanted = math.ceil(int(needed.sum()) / tile) * tile
        if wanted == 0 or wanted >= self.size:
            self.is_confirming = wanted == 0 or self.is_confirming
            return None
        order = np.lexsort((self.calm_steps.min(axis=0), ~needed))
        return sorted(order[:wanted].tolist())
