"""The entropy-bound sampler: pure functions over arrays, and the published strategies made of them.

The parity target is transformers (EntropyBoundSampler); the acceptance rule is that of arXiv 2505.24857. Shapes: B
batch, C canvas, V vocabulary. Logits here are tempered: already divided by the step's temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.stopping import StableAndConfident
from mlx_dgemma.diffusion.strategies import Acceptance, Step, Stopping, TemperatureSchedule, TokenChoice
from mlx_dgemma.errors import DGemmaError


def log_probabilities(logits: mx.array) -> mx.array:
    """Log-softmax over the vocabulary: (B, C, V) -> (B, C, V), float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def token_entropy(log_p: mx.array) -> mx.array:
    """Entropy in nats per position: (B, C, V) -> (B, C)."""
    p = mx.exp(log_p)
    return -mx.where(p == 0, 0, p * log_p).sum(axis=-1)  # what is not a number stays none


def draw(log_p: mx.array, u: mx.array) -> mx.array:
    """Categorical draw by inverse CDF: the smallest id whose cumulative probability, in id order, reaches u.

    log_p (B, C, V) and u (B, C) in [0, 1) -> ids (B, C).
    """
    cumulative = mx.cumsum(mx.exp(log_p), axis=-1)
    reach = u[..., None] * cumulative[..., -1:]  # rounding may leave the last sum just below 1
    return (cumulative < reach).sum(axis=-1).astype(mx.int32)


def accept(entropy: mx.array, entropy_bound: float) -> mx.array:
    """Which positions to accept: lowest entropy first, while cumsum(H) − H ≤ bound. (B, C) -> bool (B, C).

    The sum without the largest term bounds the mutual information between the accepted positions, so the position with
    the lowest entropy is always accepted.
    """
    order = mx.argsort(entropy, axis=-1)
    ascending = mx.take_along_axis(entropy, order, axis=-1)
    within = mx.cumsum(ascending, axis=-1) - ascending <= entropy_bound
    return mx.take_along_axis(within, mx.argsort(order, axis=-1), axis=-1)


def renoise(proposal: mx.array, accepted: mx.array, noise: mx.array) -> mx.array:
    """The next canvas: the proposal where accepted, fresh uniform tokens elsewhere. (B, C) each."""
    return mx.where(accepted, proposal, noise)


@dataclass(frozen=True)
class LinearSchedule:
    """From `t_max` at the first step towards `t_min`."""

    t_min: float
    t_max: float

    def __call__(self, remaining: int, max_steps: int) -> float:
        return self.t_min + (self.t_max - self.t_min) * remaining / max_steps


@dataclass(frozen=True)
class Categorical:
    """Proposes what was drawn."""

    draws: ClassVar[bool] = True

    def __call__(self, step: Step) -> mx.array:
        return step.drawn


@dataclass(frozen=True)
class Argmax:
    """Proposes the most likely token, and draws nothing."""

    draws: ClassVar[bool] = False

    def __call__(self, step: Step) -> mx.array:
        return step.draft


@dataclass(frozen=True)
class EntropyBound:
    """Accepts lowest entropy first, up to `bound` nats; see `accept`."""

    bound: float

    def __call__(self, step: Step) -> mx.array:
        return accept(step.entropy, self.bound)


@dataclass(frozen=True)
class Sampler:
    """The four strategies of a run, and the published schedule, whichever takes its place."""

    temperature: TemperatureSchedule
    choice: TokenChoice
    acceptance: Acceptance
    stopping: Stopping
    published: LinearSchedule

    @classmethod
    def of(cls, settings: GenerationConfig) -> Sampler:
        """The published strategies with these settings' numbers, or what takes their place."""
        named: dict[str, TokenChoice] = {"categorical": Categorical(), "argmax": Argmax()}
        choice = settings.token_choice
        published = LinearSchedule(settings.t_min, settings.t_max)
        return cls(
            settings.temperature_schedule or published,
            named[choice] if isinstance(choice, str) else choice,
            settings.acceptance or EntropyBound(settings.entropy_bound),
            settings.stopping or StableAndConfident(settings.stability_threshold, settings.confidence_threshold),
            published,
        )

    def temperature_at(self, remaining: int, max_steps: int, *, is_published: bool = False) -> float:
        """What the logits are divided by; `is_published` asks the published schedule."""
        temperature = (self.published if is_published else self.temperature)(remaining, max_steps)
        if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
            raise DGemmaError(f"temperature_schedule {self.temperature!r} gave {temperature!r}; a number > 0 is needed")
        return temperature

    def propose(self, step: Step) -> mx.array:
        """Ids (B, C)."""
        return _checked("token_choice", self.choice, self.choice(step), step.draft.shape, mx.integer)

    def accept(self, step: Step) -> mx.array:
        """Bool (B, C)."""
        return _checked("acceptance", self.acceptance, self.acceptance(step), step.draft.shape, mx.bool_)

    def is_done(self, step: Step) -> mx.array:
        """Bool (B,)."""
        return _checked("stopping", self.stopping, self.stopping(step), step.mean_entropy.shape, mx.bool_)


def _checked(
    name: str, strategy: object, result: mx.array, shape: tuple[int, ...], kind: mx.Dtype | mx.DtypeCategory
) -> mx.array:
    """The result of a strategy; a wrong one is named here, where it is known whose it is, and never computed."""
    right = result.dtype == kind if isinstance(kind, mx.Dtype) else mx.issubdtype(result.dtype, kind)
    if result.shape != shape or not right:
        found, wanted = (str(d).removeprefix("mlx.core.") for d in (result.dtype, kind))
        raise DGemmaError(f"{name} {strategy!r} gave {found} {result.shape}; {wanted} {shape} is needed")
    return result
