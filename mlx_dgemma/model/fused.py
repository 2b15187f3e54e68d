"""Chains of elementwise operations, each of which a GPU runs as one kernel.

Scalars come as 0-d arrays and shapes are left open, so that no step, canvas or prompt length traces again. On a CPU the
plain functions run: there `mx.compile` starts a C++ compiler at the first call and then gains nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_dgemma.model import cpu, trust

Helper = Callable[..., Any]
Shapes = tuple[tuple[int, ...], ...]
# by name: the plain function, the compiled one, and shapes of arguments to compare them with
HELPERS: dict[str, tuple[Helper, Helper, Shapes]] = {}
_X, _ROW = (3, 40), (3, 1)


def _fused(*shapes: tuple[int, ...]) -> Callable[[Helper], Helper]:
    """The compiled function on a GPU, the plain one on a CPU and where the two differ (`selfcheck`)."""

    def decorate(function: Helper) -> Helper:
        compiled, name = mx.compile(function, shapeless=True), function.__name__
        HELPERS[name] = function, compiled, shapes

        @functools.wraps(function)
        def call(*arrays: mx.array) -> Any:
            return (function if cpu.on_cpu() or not trust.is_trusted(name) else compiled)(*arrays)

        return call

    return decorate


@_fused(_X, _X)
def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) · up with the tanh approximation (torch's `gelu_pytorch_tanh`), same shapes."""
    x = gate.astype(mx.float32)  # as torch does inside: in bfloat16, 1 + tanh would cancel
    return (0.5 * x * (1 + mx.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))).astype(up.dtype) * up


@_fused(_X, _X, (1,))
def add_and_scale(residual: mx.array, x: mx.array, scalar: mx.array) -> mx.array:
    """(residual + x) · scalar."""
    return (residual + x) * scalar


@_fused(_ROW, _ROW, (), ())
def tempered_max(logits: mx.array, lowest: mx.array, cap: mx.array, temperature: mx.array) -> mx.array:
    """The tempered score cap · tanh(logits / cap) / temperature, float32, which the sampler sees; at least `lowest`."""
    return mx.maximum(mx.tanh(logits.astype(mx.float32) / cap) * cap / temperature, lowest)


@_fused(_X, _ROW, (), ())
def tempered_exp(
    logits: mx.array, maximum: mx.array, cap: mx.array, temperature: mx.array
) -> tuple[mx.array, mx.array]:
    """p = exp(s − maximum) of the tempered scores s, and p · (s − maximum), whose sum is in the entropy."""
    shifted = mx.tanh(logits.astype(mx.float32) / cap) * cap / temperature - maximum
    p = mx.exp(shifted)
    return p, p * shifted


@_fused(_X, _ROW, _ROW, _X)
def add_rescaled(x: mx.array, old: mx.array, maximum: mx.array, y: mx.array) -> mx.array:
    """x, a sum relative to exp(old), made relative to exp(maximum), plus y."""
    return x * mx.exp(old - maximum) + y


@_fused(_X, _X, _X, _ROW)
def rescale(total: mx.array, weighted: mx.array, own: mx.array, maximum: mx.array) -> tuple[mx.array, mx.array]:
    """Σ p and Σ p · (s − own), relative to exp(own), made relative to exp(maximum), s − maximum in the latter."""
    shift = own - maximum
    keep = mx.exp(shift)
    return keep * total, keep * (weighted + shift * total)


@_fused(_ROW, _ROW)
def entropy(total: mx.array, weighted: mx.array) -> mx.array:
    """Nats, from Σ p and Σ p · (s − maximum)."""
    return mx.log(total) - weighted / total


@_fused(_ROW, _ROW, _ROW)
def position_inside(reach: mx.array, end: mx.array, mass: mx.array) -> mx.array:
    """Where `reach` lies in the interval of this mass that ends at `end`, in [0, 1]."""
    return mx.minimum(mx.maximum((reach - end + mass) / mx.maximum(mass, 1e-37), 0), 1)


@_fused(_X, _ROW, (), (), _X, ())
def tempered_exp_below(
    logits: mx.array, maximum: mx.array, cap: mx.array, temperature: mx.array, ids: mx.array, size: mx.array
) -> mx.array:
    """exp(s − maximum) of the tempered scores s of these ids, 0 for ids that do not exist."""
    shifted = mx.tanh(logits.astype(mx.float32) / cap) * cap / temperature - maximum
    return mx.where(ids < size, mx.exp(shifted), 0)


@_fused(_X, _ROW, ())
def normalized(soft: mx.array, total: mx.array, scale: mx.array) -> mx.array:
    """soft / total · scale, rounded to the scale's type in between, as the reference does."""
    return (soft / total).astype(scale.dtype) * scale
