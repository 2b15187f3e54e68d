"""Grouped-query attention over the prefix cache; the same module serves encoder and denoiser mode.

The caller decides where the new tokens stand (`Place`): what their keys and values do to which prefix, and how they
see each other: causally (text in encoder mode) or both ways (denoiser mode, and an image in encoder mode). Rows of a
batch may stand behind prefixes of their own, of any lengths: all but the attention itself is then still computed for
all rows at once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.model.config import LayerConfig, ModelConfig
from mlx_dgemma.model.layers import fuse_linears, rms_norm, rope
from mlx_dgemma.model.scores import Attend

Extend = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]
Gather = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]


class Place(NamedTuple):
    """Where T new tokens stand.

    Attributes:
        offset: position of the first.
        extend: takes their keys and values, (B, kv_heads, T, D) each, and returns all that they can see.
        attend: which of all that each of them sees.
        at: (T,), how far behind `offset` each stands; None where they follow one another.
    """

    offset: int
    extend: Extend
    attend: Attend
    at: mx.array | None = None


class Attention(nn.Module):
    """Attention with per-head RMSNorm on queries and keys, weightless RMSNorm on values, and scale 1.

    Checkpoints keep the projections apart; `fuse` puts them into one matrix.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        hidden, head_dim = config.hidden_size, layer.head_dim
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, layer.num_key_value_heads, head_dim
        self.window = layer.window
        self.eps = config.rms_norm_eps
        self.q_proj = nn.Linear(hidden, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * head_dim, bias=False)
        if layer.has_value_projection:
            self.v_proj = nn.Linear(hidden, self.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=self.eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=self.eps)
        self.rope = rope(head_dim, layer.rope)
        self._norm: mx.array | None = None

    def __call__(self, x: mx.array, places: Sequence[Place], gather: Gather | None = None) -> mx.array:
        """x (B, T, H) -> (B, T, H); one place for all rows, or one for each.

        `gather` makes keys and values of all tokens of a pass out of those of some, (B, kv_heads, T, D) both, where
        others compute the others (see `share`).
        """
        batch, length, _ = x.shape
        heads = self._project(x).reshape(batch, length, -1, self.head_dim)  # queries', keys', values'
        heads = rms_norm(heads, self.eps)
        rows = [heads] if len(places) == 1 else mx.split(heads, batch)
        seen = [self._queries_keys_values(own, place) for own, place in zip(rows, places, strict=True)]
        if gather is not None:
            k, v = gather(*(mx.concatenate([own[i] for own in seen]) for i in (1, 2)))
            keys, values = (mx.split(own, len(places)) for own in (k, v))
            seen = [(own[0], k, v) for own, k, v in zip(seen, keys, values, strict=True)]
        outs = [self._attend(*own, place) for own, place in zip(seen, places, strict=True)]
        out = outs[0] if len(outs) == 1 else mx.concatenate(outs)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def _queries_keys_values(self, heads: mx.array, place: Place) -> tuple[mx.array, mx.array, mx.array]:
        """Normed heads of all three kinds (B, T, heads, D) at a place -> (B, heads, T, D), (B, kv_heads, T, D) both."""
        weight = self._norm_weight() if self._norm is None else self._norm
        qk = self._turned(heads[:, :, : len(weight)] * weight, place)
        v = heads[:, :, -self.kv_heads :].transpose(0, 2, 1, 3)  # without a projection of their own, the raw keys
        return qk[:, : self.heads], qk[:, self.heads :], v

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, place: Place) -> mx.array:
        keys, values = place.extend(k, v)  # (B, kv_heads, S, D): what this layer can see
        return place.attend(q, keys, values, self.window)

    def _turned(self, qk: mx.array, place: Place) -> mx.array:
        """Queries and keys (B, T, heads, D) with their positions in them -> (B, heads, T, D)."""
        if place.at is None:
            turned: mx.array = self.rope(qk.transpose(0, 2, 1, 3), offset=place.offset)
            return turned
        # every token a row of its own, which may have an offset of its own
        offsets = mx.tile(place.at + place.offset, qk.shape[0])
        rows: mx.array = self.rope(qk.flatten(0, 1)[:, :, None], offset=offsets)  # (B · T, heads, 1, D)
        return rows.reshape(qk.shape).transpose(0, 2, 1, 3)

    def fuse(self) -> None:
        """Replaces the projections by `qkv_proj` where all have the same format; the norms keep their names."""
        fuse_linears(self, self._projections(), "qkv_proj")
        self._norm = self._norm_weight()
        mx.eval(self._norm)

    def _projections(self) -> list[str]:
        return [name for name in ("q_proj", "k_proj", "v_proj") if name in self]

    def _project(self, x: mx.array) -> mx.array:
        if "qkv_proj" in self:
            together: mx.array = self.qkv_proj(x)
            return together
        return mx.concatenate([self[name](x) for name in self._projections()], axis=-1)

    def _norm_weight(self) -> mx.array:
        """The norms' weights by head: (heads + kv_heads, D)."""
        q, k = (mx.broadcast_to(norm.weight, (1, self.head_dim)) for norm in (self.q_norm, self.k_norm))
        return mx.concatenate([mx.repeat(q, self.heads, axis=0), mx.repeat(k, self.kv_heads, axis=0)])
