"""Steered canvases: positions whose tokens are given, and first canvases that start from a draft.

Given tokens are clamped at every step and the rest is denoised around them, as attention looks both ways. They count as
accepted and certain (entropy 0) and take no part in the stopping rule.
"""

from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma.diffusion.noise import Rows


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
    def is_complete(self) -> bool:
        """Whether every position is given, so that nothing is left to denoise."""
        return self.clamped is not None and bool(self.clamped.all().item())

    def start(self, noise: Rows) -> mx.array:
        """The first canvas (B, C)."""
        canvas = noise.tokens()
        if self.draft is not None:
            canvas = mx.where(self.keep, self.draft, canvas)
        return self.clamp(canvas)

    def clamp(self, tokens: mx.array) -> mx.array:
        """Tokens (B, C) with the given ones in their places."""
        return tokens if self.clamped is None else mx.where(self.clamped, self.given, tokens)

    def settled(self, values: mx.array) -> mx.array:
        """Entropies or log-probabilities (B, C), zero where the token is given."""
        return values if self.clamped is None else mx.where(self.clamped, 0, values)

    def mean(self, values: mx.array) -> mx.array:
        """Mean over the positions that are not given: (B, C) -> (B,)."""
        if self.clamped is None:
            return values.mean(axis=-1)
        free = (~self.clamped).astype(mx.float32)
        return (values * free).sum(axis=-1) / free.sum(axis=-1)
