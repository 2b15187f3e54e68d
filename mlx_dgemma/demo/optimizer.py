"""Optimisers of the embedded checkpoint: Muon for matrices and stacks of them, Adam for all else."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Jordan 2024, "Muon"), for matrices and stacks of expert matrices."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without torch's closure, which nothing here gives
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:  # eyes, where nothing was shown
                    continue
                state = self.state[p]
                buffer = state.setdefault("buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)


def orthogonalise(x: Tensor, iterations: int = 5) -> Tensor:
    """Newton–Schulz iteration towards the nearest semi-orthogonal matrix, over the last two axes."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, p in model.named_parameters():
        if p.ndim >= 2 and not any(part in name for part in ("embed_tokens", "router", "position_embedding")):
            matrices.append(p)
        else:
            others.append(p)
    return [Muon(matrices, lr=0.02), torch.optim.Adam(others, lr=2e-3, betas=(0.9, 0.95))]
