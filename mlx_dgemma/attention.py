"""Grouped-query attention over the prefix cache; the same module serves encoder and denoiser mode.

The caller decides what the new keys and values do to the cache (`extend`: append or overlay) and whether the new tokens
see each other causally (encoder mode) or both ways (denoiser mode).
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.rope_utils import initialize_rope

from mlx_dgemma.config import LayerConfig, ModelConfig
from mlx_dgemma.layers import rms_norm
from mlx_dgemma.scores import attend_all, attend_causally

Extend = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]


class Attention(nn.Module):
    """Attention with per-head RMSNorm on queries and keys, weightless RMSNorm on values, and scale 1."""

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
        self.rope = initialize_rope(head_dim, layer.rope["rope_theta"], False, layer.rope)

    def __call__(self, x: mx.array, offset: int, extend: Extend, causal: bool) -> mx.array:
        """x (B, T, H) at positions offset … offset + T − 1 -> (B, T, H)."""
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).reshape(batch, length, self.heads, self.head_dim))
        raw_k = self.k_proj(x).reshape(batch, length, self.kv_heads, self.head_dim)
        raw_v = self.v_proj(x).reshape(raw_k.shape) if "v_proj" in self else raw_k
        q = self.rope(q.transpose(0, 2, 1, 3), offset=offset)  # (B, heads, T, D)
        k = self.rope(self.k_norm(raw_k).transpose(0, 2, 1, 3), offset=offset)  # (B, kv_heads, T, D)
        v = rms_norm(raw_v, self.eps).transpose(0, 2, 1, 3)
        keys, values = extend(k, v)  # (B, kv_heads, S, D): what this layer can see
        out = attend_causally(q, keys, values, self.window) if causal else attend_all(q, keys, values)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(batch, length, -1))
