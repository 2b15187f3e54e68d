"""The only source of randomness: uniform tokens and uniform floats, drawn in a fixed order."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import mlx.core as mx


@runtime_checkable
class Noise(Protocol):
    """What a sampler draws from. A test can hand in a source of its own; NumPy arrays will do."""

    def tokens(self, shape: tuple[int, ...]) -> mx.array:
        """Uniform token ids, integers in [0, vocabulary)."""

    def uniform(self, shape: tuple[int, ...]) -> mx.array:
        """Uniform floats in [0, 1)."""


class SeededNoise:
    """Noise from MLX's counter-based generator; the same seed gives the same draws on every machine."""

    def __init__(self, seed: int, vocab_size: int):
        self.vocab_size = vocab_size
        self._key = mx.random.key(seed)

    def tokens(self, shape: tuple[int, ...]) -> mx.array:
        return mx.random.randint(0, self.vocab_size, shape, key=self._next_key())

    def uniform(self, shape: tuple[int, ...]) -> mx.array:
        return mx.random.uniform(shape=shape, key=self._next_key())

    def _next_key(self) -> mx.array:
        self._key, key = mx.random.split(self._key)
        return key


class Rows:
    """Noise for a canvas of shape (B, C): from one source, or from one source per row, each drawing (1, C).

    A row's own source is drawn from only while the row is `active`: it then draws what it would draw alone.
    """

    def __init__(self, noise: Noise | Sequence[Noise], shape: tuple[int, int]):
        self.noise, self.shape = noise, shape
        self.active = [True] * shape[0]

    def tokens(self) -> mx.array:
        """Uniform token ids (B, C)."""
        if not isinstance(self.noise, Sequence):
            return mx.array(self.noise.tokens(self.shape))
        rows = zip(self.noise, self.active, strict=True)
        return self._rows([own.tokens((1, self.shape[1])) if draws else None for own, draws in rows])

    def uniform(self) -> mx.array:
        """Uniform floats (B, C) in [0, 1)."""
        if not isinstance(self.noise, Sequence):
            return mx.array(self.noise.uniform(self.shape))
        rows = zip(self.noise, self.active, strict=True)
        return self._rows([own.uniform((1, self.shape[1])) if draws else None for own, draws in rows])

    def _rows(self, drawn: list[mx.array | None]) -> mx.array:
        nothing = mx.zeros_like(mx.array(next(row for row in drawn if row is not None)))
        return mx.concatenate([nothing if row is None else mx.array(row) for row in drawn])
