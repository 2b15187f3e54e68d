"""Mixture of experts: a router that reads the raw residual stream, and stacked experts read through a sorted gather."""

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.model import cpu, fused, trust
from mlx_dgemma.model.config import ModelConfig

SORT_FROM = 64  # (token, expert) pairs; below that the sort costs more than it saves


class Router(nn.Module):
    """Picks top-k experts per token: (…, H) -> weights (…, K) float32 and expert ids (…, K)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.top_k = config.top_k_experts
        self.root_size = config.hidden_size**-0.5
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = mx.ones((config.hidden_size,))
        self.per_expert_scale = mx.ones((config.num_experts,))
        self._weight: mx.array | None = None

    def fuse(self) -> None:
        """Makes `scale` the weight of the norm before it: one array less per call; `scale` stays what it was."""
        self._weight = self.scale * self.root_size
        mx.eval(self._weight)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        x = mx.fast.rms_norm(x, self.scale * self.root_size if self._weight is None else self._weight, self.eps)
        scores = self.proj(x).astype(mx.float32)  # (…, E)
        # (…, K); which ones is no matter of gradients, and a gather has none with respect to its indices
        chosen = mx.stop_gradient(mx.argpartition(scores, -self.top_k, axis=-1)[..., -self.top_k :])
        # softmax over all experts, renormalised over the chosen ones, is softmax over the chosen ones
        weights = mx.softmax(mx.take_along_axis(scores, chosen, axis=-1), axis=-1, precise=True)
        return weights * self.per_expert_scale[chosen], chosen


class ExpertLinear(nn.Module):
    """One matrix an expert, weight (E, out, in), without bias."""

    def __init__(self, in_dim: int, out_dim: int, count: int):
        super().__init__()
        scale = in_dim**-0.5
        self.weight = mx.random.uniform(-scale, scale, (count, out_dim, in_dim))

    def __call__(self, x: mx.array, experts: mx.array, is_sorted: bool) -> mx.array:
        """x (N, M, in), each M rows through one of the experts (N) -> (N, M, out)."""
        return mx.gather_mm(x, self.weight.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=is_sorted)

    def to_quantized(self, group_size: int, bits: int, mode: str = "affine") -> "QuantizedExpertLinear":
        """What `nn.quantize` puts in its place."""
        return QuantizedExpertLinear(self.weight, group_size, bits, mode)


class QuantizedExpertLinear(nn.Module):
    """`ExpertLinear` with quantized weights: packed weight, scales, and biases in the affine mode."""

    def __init__(self, weight: mx.array, group_size: int, bits: int, mode: str):
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
        if biases:
            self.biases = biases[0]
        self.freeze()

    def __call__(self, x: mx.array, experts: mx.array, is_sorted: bool) -> mx.array:
        """x (N, M, in), each M rows through one of the experts (N) -> (N, M, out)."""
        return mx.gather_qmm(
            x, self.weight, self.scales, self.get("biases"), rhs_indices=experts, transpose=True,
            group_size=self.group_size, bits=self.bits, mode=self.mode, sorted_indices=is_sorted,
        )  # fmt: skip


class Experts(nn.Module):
    """Gated MLPs with stacked weights: gate_up_proj (E, 2·I, H), gate rows first, and down_proj (E, H, I)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, inner, count = config.hidden_size, config.moe_intermediate_size, config.num_experts
        self.gate_up_proj = ExpertLinear(hidden, 2 * inner, count)
        self.down_proj = ExpertLinear(inner, hidden, count)

    def __call__(self, x: mx.array, weights: mx.array, chosen: mx.array) -> mx.array:
        """Weighted sum of the chosen experts. x (…, H), weights and chosen (…, K) -> (…, H)."""
        k = chosen.shape[-1]
        rows, experts = x.reshape(-1, x.shape[-1]), chosen.flatten()  # (T, H), (T·K)
        if experts.size < SORT_FROM:
            out = self._run(rows[mx.arange(experts.size) // k][:, None], experts, False)
        else:  # tokens of one expert side by side, so that each expert's weights are read once
            order = mx.argsort(experts)
            token, experts, back = order // k, experts[order], mx.argsort(order)
            if self._wants_tiles():
                count = self.gate_up_proj.weight.shape[0]
                out = cpu.in_tiles(lambda tile, own: self._run(tile, own, True), rows, token, experts, count, back)
            else:
                is_sorted = trust.is_trusted("sorted experts")  # or the kernel for any order is taken
                out = self._run(rows[token][:, None], experts, is_sorted)[back]
        out = out.reshape(*chosen.shape, -1)  # (…, K, H)
        return (weights[..., None, :].astype(x.dtype) @ out).squeeze(-2)

    def _run(self, rows: mx.array, experts: mx.array, is_sorted: bool) -> mx.array:
        """rows (N, M, H), each M of them through one of the experts (N) -> (N, M, H)."""
        gate, up = mx.split(self.gate_up_proj(rows, experts, is_sorted), 2, axis=-1)
        return self.down_proj(fused.geglu(gate, up), experts, is_sorted)

    def _wants_tiles(self) -> bool:
        # a CPU multiplies row by row otherwise; a GPU has kernels for sorted single rows
        return cpu.on_cpu() and isinstance(self.gate_up_proj, ExpertLinear)
