"""Steered canvases: positions whose tokens are given, and first canvases that start from a draft.

Given tokens are clamped at every step and the rest is denoised around them, as attention looks both ways. They count as
accepted and certain (entropy 0) and take no part in the stopping rule.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma.diffusion.noise import Rows
from mlx_dgemma.errors import DGemmaError


@dataclass(frozen=True)
class Steering:
    """How one canvas is steered; arrays are (1, C) or (B, C).

    Attributes:
        given: token ids; only those at clamped positions matter. None steers nothing.
        clamped: bool, which positions are given. None with `given` None.
        draft: token ids that the canvas starts from instead of noise, or None.
        keep: bool, which positions of the draft stay; the rest starts as noise.
    """

    given: mx.array | None
    clamped: mx.array | None
    draft: mx.array | None = None
    keep: mx.array | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing is steered."""
        return self.given is None and self.draft is None

    @property
    def is_complete(self) -> bool:
        """Whether every position is given, so that nothing is left to denoise."""
        return self.clamped is not None and bool(self.clamped.all().item())

    def start(self, noise: Rows) -> mx.array:
        """The first canvas (B, C)."""
        canvas = noise.tokens()
        if self.draft is not None and self.keep is not None:
            canvas = mx.where(self.keep, self.draft, canvas)
        return self.clamp(canvas)

    def clamp(self, tokens: mx.array) -> mx.array:
        """Tokens (B, C) with the given ones in their places."""
        if self.clamped is None or self.given is None:
            return tokens
        return mx.where(self.clamped, self.given, tokens)

    def keep_given(self, accepted: mx.array) -> mx.array:
        """Accepted positions (B, C) and the given ones, which always are."""
        return accepted if self.clamped is None else accepted | self.clamped

    def settled(self, values: mx.array) -> mx.array:
        """Entropies or log-probabilities (B, C), zero where the token is given."""
        return values if self.clamped is None else mx.where(self.clamped, 0, values)

    def mean(self, values: mx.array) -> mx.array:
        """Mean over the positions that are not given: (B, C) -> (B,)."""
        if self.clamped is None:
            return values.mean(axis=-1)
        free = (~self.clamped).astype(mx.float32)
        return (values * free).sum(axis=-1) / free.sum(axis=-1)


def steerings(
    given: Sequence[int | None], draft: Sequence[int], noise: float, seed: int, canvas: int, vocab_size: int
) -> list[Steering]:
    """One Steering for each of the first canvases.

    Args:
        given: token ids by position, None where the model fills in; over as many canvases as it takes.
        draft: token ids that the first canvas starts from.
        noise: share of the draft that is replaced by noise, 0 … 1.
        seed: chooses which.
        canvas: positions of a canvas.
        vocab_size: what token ids stay below.

    Raises:
        DGemmaError: an id outside the vocabulary, a draft longer than a canvas, a share outside 0 … 1.
    """
    for token in (*given, *draft):
        if token is not None and not (type(token) is int and 0 <= token < vocab_size):
            raise DGemmaError(f"canvas: token id {token!r} is outside the vocabulary (0 … {vocab_size - 1})")
    if not 0 <= noise <= 1:
        raise DGemmaError(f"the share of noise is {noise}; give a number from 0 to 1")
    if len(draft) > canvas:
        raise DGemmaError(f"the draft has {len(draft)} tokens, one canvas has {canvas}; shorten it")
    made = [Steering(*_clamps(given[start : start + canvas], canvas)) for start in range(0, len(given), canvas)]
    if not draft:
        return made
    replaced = set(random.Random(seed).sample(range(len(draft)), round(noise * len(draft))))
    keep = mx.array([[i < len(draft) and i not in replaced for i in range(canvas)]])
    start = mx.array([[*draft, *[0] * (canvas - len(draft))]])
    first = made[0] if made else Steering(None, None)
    return [Steering(first.given, first.clamped, start, keep), *made[1:]]


def _clamps(part: Sequence[int | None], canvas: int) -> tuple[mx.array | None, mx.array | None]:
    """Ids and clamped positions (1, C) of one canvas; None where nothing is given."""
    if all(token is None for token in part):
        return None, None
    tokens = [*part, *[None] * (canvas - len(part))]
    return mx.array([[token or 0 for token in tokens]]), mx.array([[token is not None for token in tokens]])
