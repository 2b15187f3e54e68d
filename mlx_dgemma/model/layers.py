"""Small building blocks shared by encoder and denoiser mode."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dgemma.model import fused


def tensors(module: nn.Module) -> dict[str, mx.array]:
    """All parameters by name."""
    found: dict[str, mx.array] = {}
    tree_flatten(module.parameters(), destination=found)
    return found


def rms_norm(x: mx.array, eps: float) -> mx.array:
    """RMSNorm without weight: x / √(mean(x²) + eps), in float32 inside."""
    return mx.fast.rms_norm(x, None, eps)


def softcap(x: mx.array, cap: float) -> mx.array:
    """cap · tanh(x / cap), which keeps logits in (−cap, cap)."""
    return mx.tanh(x / cap) * cap


def rope(head_dim: int, parameters: dict[str, Any]) -> Callable[..., Any]:
    """Rotary embedding, split-half, by the `rope_parameters` of a layer's kind."""
    theta = float(parameters["rope_theta"])  # JSON may spell it as an integer, of which MLX takes small ones only
    if parameters["rope_type"] == "default":
        return nn.RoPE(head_dim, base=theta)
    rotated = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    return ProportionalRoPE(head_dim, rotated, theta)


class ProportionalRoPE(nn.Module):
    """Rotary embedding of the first pairs of dimensions only, whose frequencies are those of the whole head."""

    def __init__(self, head_dim: int, rotated: int, base: float):
        super().__init__()
        self.head_dim = head_dim
        # periods by pair: base^(2i / head_dim), infinite where nothing turns
        periods = base ** (mx.arange(0, rotated, 2, dtype=mx.float32) / head_dim)
        self._periods = mx.concatenate([periods, mx.full(((head_dim - rotated) // 2,), mx.inf)])
        mx.eval(self._periods)  # no other thread could

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._periods
        )


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) · up(x)): (…, hidden) -> (…, hidden).

    Checkpoints keep gate and up apart; `fuse` puts them into one matrix, so that x is read once.
    """

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(fused.geglu(gate, up))

    def fuse(self) -> None:
        """Replaces `gate_proj` and `up_proj` by `gate_up_proj`, gate rows first, where both have the same format."""
        fuse_linears(self, ["gate_proj", "up_proj"], "gate_up_proj")


def fuse_linears(module: nn.Module, names: list[str], fused_name: str) -> None:
    """Replaces linear layers of one input by one that has their rows in this order, unless their formats differ."""
    first, *others = (module[name] for name in names)
    if any(_format(other) != _format(first) for other in others):
        return
    for name, rows in first.parameters().items():
        first[name] = mx.concatenate([rows, *(other[name] for other in others)])
    mx.eval(first.parameters())
    module[fused_name] = first
    for name in names:
        del module[name]


def _format(linear: nn.Linear | nn.QuantizedLinear) -> tuple[int, int, str] | None:
    if isinstance(linear, nn.QuantizedLinear):
        return linear.group_size, linear.bits, linear.mode
    return None
