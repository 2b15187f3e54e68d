"""The only source of randomness: uniform tokens and uniform floats, drawn in a fixed order."""

from typing import Protocol

import mlx.core as mx


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
