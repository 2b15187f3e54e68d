"""Strategies beside the published ones: acceptance by history and a short anneal; see docs/samplers.md."""

from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma.diffusion.sampling import accept
from mlx_dgemma.diffusion.strategies import Step


@dataclass(frozen=True)
class ByHistory:
    """What the entropy bound accepts, and positions whose argmax has not changed for some steps.

    These join by ascending entropy, up to `extra` nats of it in all. The idea is KLASS' (arXiv 2511.05664): confident
    and stable over several steps.

    Attributes:
        bound: nats, of the published rule.
        extra: nats that the entropies of those beside it may add up to.
        steps: how many steps in a row the argmax must have been the same.
        entropy: nats; only below this.
        shift: nats; log-probability moved by less than this since the step before.
    """

    bound: float = 0.1
    extra: float = 1.0
    steps: int = 2
    entropy: float = 0.3
    shift: float = 0.1

    def __call__(self, step: Step) -> mx.array:
        base = accept(step.entropy, self.bound)
        if len(step.earlier) < self.steps:
            return base
        calm = (step.entropy < self.entropy) & (mx.abs(step.log_p - step.earlier[-1].log_p) < self.shift) & ~base
        for before in step.earlier[-self.steps :]:
            calm = calm & (before.draft == step.draft)
        order = mx.argsort(mx.where(calm, step.entropy, mx.inf), axis=-1)
        sums = mx.cumsum(mx.take_along_axis(mx.where(calm, step.entropy, 0), order, axis=-1), axis=-1)
        within = mx.take_along_axis(sums <= self.extra, mx.argsort(order, axis=-1), axis=-1)
        return base | (calm & within)


@dataclass(frozen=True)
class ShortAnneal:
    """From `t_max` to `t_min` in so many steps, where it stays: published samplers stop long before they reach `t_min`.

    A lower temperature also lowers the entropies that the stopping rule sees. With settling on, confirming steps are
    made at the published schedule's temperature all the same.
    """

    steps: int = 16
    t_min: float = 0.4
    t_max: float = 0.8

    def __call__(self, remaining: int, max_steps: int) -> float:
        return max(self.t_min, self.t_max - (self.t_max - self.t_min) * (max_steps - remaining) / self.steps)
