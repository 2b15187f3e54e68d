"""The positions of a canvas that have settled, and those that the next step computes; see `settling`."""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.settling import Settling
from mlx_dgemma.model.cache import Slots

TILES = 16  # of a canvas: the number of computed positions is a multiple of a tile, so that few sizes occur
GROWS_AFTER = 2  # steps without a stop token in the draft


@dataclass(frozen=True)
class Told:
    """What a step that was read tells about its positions and rows.

    Attributes:
        calm: (B, C) bool; accepted, as in the step before, and below the entropy. Of positions that were not computed,
            what does not matter.
        ready: (B,) bool; whether the stopping rule holds.
        ended: (B,) bool; whether the draft of the present positions has a stop token.
        length: (B,); how many positions the text takes, its stop token and what is not certain included.
        finished: (B,) bool; whether a row is done.
        restless: (B, C) bool; positions whose scores need all ids again.
    """

    calm: np.ndarray
    ready: np.ndarray
    ended: np.ndarray
    length: np.ndarray
    finished: np.ndarray
    restless: np.ndarray


class Settled:
    """Which positions of a canvas (B, C) the next step computes; on the host, as that decides the step's shape.

    Attributes:
        size: how many positions are present, from the first on.
        width: C.
        computed: the positions that the next step computes; None for all that are present.
        walks: whether it scores all ids.
        restless: (B, C) bool; where it does not, positions that are scored over all ids all the same.
    """

    def __init__(self, rule: Settling, shape: tuple[int, int], size: int):
        self.rule, self.width, self.size = rule, shape[1], size
        self.calm_steps = np.zeros(shape, int)
        self.failed = self.without_end = 0
        self.is_confirming = False
        self.computed: list[int] | None = None
        self.walks, self._steps = True, 0
        self.restless = np.ones(shape, bool)

    @property
    def is_full(self) -> bool:
        """Whether the next step is one of the published sampler's, so that it can end the canvas."""
        return self.computed is None and self.walks

    @property
    def positions(self) -> Slots | None:
        """What the next step computes of the canvas; None for all of it."""
        if self.computed is None:
            return None if self.size == self.width else Slots(mx.arange(self.size), self.size)
        return Slots(mx.array(self.computed), self.size)

    def learn(self, told: Told, *, is_last: bool) -> None:
        """Takes what a step came to; `is_last` if the next one is the canvas' last."""
        was_full, had_settled = self.is_full, self._mask()
        at = range(self.size) if self.computed is None else self.computed
        self.calm_steps[:, at] = np.where(told.calm, self.calm_steps + 1, 0)[:, at]
        if was_full and self.is_confirming:  # and it has not finished, or nobody would ask for the next step
            self.failed += 1
            self._wake(had_settled & ~told.calm)
        going_on = ~told.finished
        has_grown = self._grow(bool((~told.ended & going_on).any()), is_last=is_last)
        if self.rule.crop < 1 and not has_grown and not is_last:
            length = max(int(told.length[going_on].max(initial=0)) + 1, math.ceil(self.rule.crop * self.width))
            self.size = min(self.size, self._tiled(length))
        self.is_confirming = bool((told.ready & going_on).any())
        is_full = is_last or has_grown or self.is_confirming or self.failed > self.rule.failures
        self.computed = None if is_full else self._unsettled((~self._mask()[going_on]).any(axis=0))
        self._steps, self.restless = self._steps + 1, told.restless
        every = self.rule.walk_every
        self.walks = is_full or self.is_confirming or every is None or self._steps < 2 or self._steps % every == 0

    def _grow(self, has_no_end: bool, *, is_last: bool) -> bool:
        """Whether more positions become present: twice as many after two steps without an end, all for the last."""
        self.without_end = self.without_end + 1 if has_no_end else 0
        if self.size == self.width or not (self.without_end >= GROWS_AFTER or (has_no_end and is_last)):
            return False
        self.size = self.width if is_last else min(2 * self.size, self.width)
        self.without_end = 0
        return True

    def _tiled(self, positions: int) -> int:
        """So many positions, rounded up to a whole tile."""
        tile = math.ceil(self.width / TILES)
        return math.ceil(positions / tile) * tile

    def _mask(self) -> np.ndarray:
        mask: np.ndarray = self.calm_steps >= self.rule.steps
        return mask

    def _wake(self, changed: np.ndarray) -> None:
        """Positions around those that a confirming step changed (B, C)."""
        for row, position in np.argwhere(changed):
            self.calm_steps[row, max(0, position - self.rule.neighbours) : position + self.rule.neighbours + 1] = 0

    def _unsettled(self, needed: np.ndarray) -> list[int] | None:
        """The needed positions (C,), filled up to a whole tile with those that settled last; None for all present."""
        needed = needed[: self.size]
        wanted = self._tiled(int(needed.sum()))
        if wanted == 0 or wanted >= self.size:
            self.is_confirming = wanted == 0
            return None
        order = np.lexsort((self.calm_steps[:, : self.size].min(axis=0), ~needed))
        return sorted(order[:wanted].tolist())
