"""The prefix cache: keys and values of every encoded token, with two operations.

    append   encoder mode: the new tokens join the prefix
    overlay  denoiser mode: canvas keys and values go into the slack behind the prefix, which stays as it was

        full layer      [ prefix 0 … length−1 | canvas | unused ]
        sliding layer   [ last ≤ window−1     | canvas ]

Both write in place as long as no other array refers to the buffer, that is, when each step is evaluated before the next
one is built; then no denoising step copies the prefix.
"""

from typing import NamedTuple

import mlx.core as mx

Buffers = tuple[mx.array | None, mx.array | None]  # keys and values of a layer
Held = tuple[mx.array | None, mx.array | None, int]  # the same, and how many slots hold the visible prefix
GROWTH = 4  # a buffer that must grow gets a quarter more than it needs


class Slots(NamedTuple):
    """Some positions of a canvas of `size`: the others' keys and values stay as they were last written.

    `at` (R,): ascending, each below `size`.
    """

    at: mx.array
    size: int


def _handle(array: mx.array | None) -> mx.array | None:
    """The same array under a name of its own: writing to a slice of one changes all that go by its name."""
    return None if array is None else array[...]


class LayerCache:
    """Keys and values (B, kv_heads, capacity, D) of one layer; the first `length` slots hold the visible prefix."""

    def __init__(self, window: int | None):
        self.window = window
        self.length = 0
        self.reserved = 0  # slots to make room for when the buffer next grows
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def capacity(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def append(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Adds T new positions, (B, kv_heads, T, D) each; returns all that the new queries may look at."""
        end = self.length + k.shape[2]
        if self.window is None or end < self.window:
            self._write(k, v)
            self.length = end
            return self._view(end)
        keys, values = k, v
        if self.length:
            old_keys, old_values = self._view(self.length)
            keys, values = mx.concatenate([old_keys, k], axis=2), mx.concatenate([old_values, v], axis=2)
        self.length = self.window - 1  # the next query sees itself and window − 1 tokens before it
        # contiguous: a view would keep the longer array alive
        self.keys = mx.contiguous(keys[:, :, end - self.length :])
        self.values = mx.contiguous(values[:, :, end - self.length :])
        return keys, values

    def overlay(self, k: mx.array, v: mx.array, slots: Slots | None = None) -> tuple[mx.array, mx.array]:
        """Prefix and canvas side by side, (B, kv_heads, length + C, D) each; the prefix does not change.

        With `slots`, k and v are those of these positions of a canvas that was written as a whole before.
        """
        if slots is None:
            self._write(k, v)
            return self._view(self.length + k.shape[2])
        keys, values = self._buffers()
        keys[:, :, self.length + slots.at] = k
        values[:, :, self.length + slots.at] = v
        return self._view(self.length + slots.size)

    def _view(self, end: int) -> tuple[mx.array, mx.array]:
        keys, values = self._buffers()
        return keys[:, :, :end], values[:, :, :end]

    def _buffers(self) -> tuple[mx.array, mx.array]:
        assert self.keys is not None and self.values is not None  # both are there from the first write on
        return self.keys, self.values

    def _write(self, k: mx.array, v: mx.array) -> None:
        end = self.length + k.shape[2]
        if end > self.capacity:
            self._grow(k, end)
        keys, values = self._buffers()
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v

    def _grow(self, like: mx.array, needed: int) -> None:
        batch, heads, _, head_dim = like.shape
        capacity = self.reserved if self.reserved >= needed else needed + needed // GROWTH
        spare = mx.zeros((batch, heads, capacity - self.length, head_dim), like.dtype)
        if self.length == 0:
            self.keys, self.values = spare, mx.zeros_like(spare)
            return
        keys, values = self._view(self.length)
        self.keys, self.values = mx.concatenate([keys, spare], axis=2), mx.concatenate([values, spare], axis=2)


class PrefixCache:
    """One LayerCache a layer; `length` is the number of tokens encoded so far, for the positions of the next ones."""

    def __init__(self, windows: list[int | None]):
        self.layers = [LayerCache(window) for window in windows]
        self.length = 0

    def reserve(self, tokens: int) -> None:
        """Full layers will make room for at least so many tokens at once when they next grow."""
        for layer in self.layers:
            if layer.window is None:
                layer.reserved = max(layer.reserved, tokens)

    def snapshot(self) -> list[Buffers]:
        """The buffers as they are, for `restore`; as long as it is held, the next write copies them."""
        return [(_handle(layer.keys), _handle(layer.values)) for layer in self.layers]

    def restore(self, buffers: list[Buffers]) -> None:
        """Undoes overlays that were never evaluated."""
        for layer, (keys, values) in zip(self.layers, buffers, strict=True):
            layer.keys, layer.values = keys, values

    def held(self) -> list[Held]:
        """What each layer holds, under names of its own: later writes copy, and do not show."""
        return [(_handle(layer.keys), _handle(layer.values), layer.length) for layer in self.layers]

    @classmethod
    def of(cls, windows: list[int | None], held: list[Held], length: int) -> "PrefixCache":
        """A cache of so many tokens out of what layers held; a full layer may have held more."""
        cache = cls(windows)
        cache.length = length
        for layer, (keys, values, visible) in zip(cache.layers, held, strict=True):
            layer.keys, layer.values = _handle(keys), _handle(values)
            layer.length = visible if layer.window is not None else length
        return cache

    def take(self, rows: list[int]) -> "PrefixCache":
        """A cache of its own with these rows of the batch, in this order; a row that is named twice is there twice."""
        taken = PrefixCache([layer.window for layer in self.layers])
        taken.length = self.length
        for layer, own in zip(self.layers, taken.layers, strict=True):
            own.length, own.reserved = layer.length, layer.reserved
            if layer.keys is not None and layer.values is not None:
                own.keys, own.values = (a[mx.array(rows), :, : layer.length] for a in (layer.keys, layer.values))
        return taken

    def arrays(self) -> list[mx.array]:
        """Every buffer, for `mx.eval`."""
        return [a for layer in self.layers for a in (layer.keys, layer.values) if a is not None]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays())
