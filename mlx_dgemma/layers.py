"""Small building blocks shared by encoder and denoiser mode."""

import mlx.core as mx
import mlx.nn as nn


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU, tanh approximation (torch's `gelu_pytorch_tanh`)."""
    # Not nn.gelu_approx: that one is compiled, which on a CPU starts a C++ compiler at the first call.
    wide = x.astype(mx.float32)  # as torch does inside: in bfloat16, 1 + tanh would cancel
    return (0.5 * wide * (1 + mx.tanh(0.7978845608028654 * (wide + 0.044715 * wide * wide * wide)))).astype(x.dtype)


def rms_norm(x: mx.array, eps: float) -> mx.array:
    """RMSNorm without weight: x / √(mean(x²) + eps), in float32 inside."""
    return mx.fast.rms_norm(x, None, eps)


def softcap(x: mx.array, cap: float) -> mx.array:
    """cap · tanh(x / cap), which keeps logits in (−cap, cap)."""
    return mx.tanh(x / cap) * cap


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) · up(x)): (…, hidden) -> (…, hidden)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(gelu_tanh(self.gate_proj(x)) * self.up_proj(x))
