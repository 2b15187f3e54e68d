"""The four decisions of a denoising step, as protocols: what to draw at, what to propose, what to accept, when to stop.

The published ones are frozen dataclasses (`sampling.LinearSchedule`, `Categorical`, `EntropyBound`,
`stopping.StableAndConfident`); anything of the same form takes their place as a field of the settings:

    Request(prompt, settings=GenerationConfig(acceptance=MyRule(0.2)))

A strategy is asked while the graph of a step is built: its arrays are not computed yet, and it must not wait for them
(`.item()`, `.tolist()`, `mx.eval`), or every step would wait twice. No heavy imports here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, eq=False)
class EarlierStep:
    """What an earlier step of the same canvas came to; arrays are (B, C)."""

    draft: mx.array
    entropy: mx.array
    accepted: mx.array
    log_p: mx.array


@dataclass(frozen=True, eq=False)
class Step:
    """What a denoising step knows; arrays are (B, C), of the tempered distribution, and not computed yet.

    Attributes:
        canvas: ids the step started from.
        draft: argmax ids, which would be committed now, with given tokens in their places.
        drawn: ids drawn from the distribution; the argmax where the token choice draws none.
        entropy: nats; 0 where the token is given.
        log_p: of the draft's tokens, nats; 0 where the token is given.
        mean_entropy: (B,), nats, over the positions that are not given.
        given: bool, (1, C) or (B, C), which positions are; None where none is.
        remaining: steps left including this one, N … 1.
        max_steps: N.
        temperature: what the logits were divided by.
        earlier: the steps before it, oldest first.
    """

    canvas: mx.array
    draft: mx.array
    drawn: mx.array
    entropy: mx.array
    log_p: mx.array
    mean_entropy: mx.array
    given: mx.array | None
    remaining: int
    max_steps: int
    temperature: float
    earlier: tuple[EarlierStep, ...]


@runtime_checkable
class TemperatureSchedule(Protocol):
    """What the logits are divided by."""

    def __call__(self, remaining: int, max_steps: int) -> float:
        """The temperature with `remaining` (N … 1) of `max_steps` (N) steps to go; above 0."""


@runtime_checkable
class TokenChoice(Protocol):
    """Which token is proposed at each position."""

    @property
    def draws(self) -> bool:
        """Whether `Step.drawn` is wanted; it takes one uniform number a position from the noise source."""

    def __call__(self, step: Step) -> mx.array:
        """Ids (B, C)."""


@runtime_checkable
class Acceptance(Protocol):
    """Which proposals stay in the canvas; the other positions get fresh noise. Given positions always stay."""

    def __call__(self, step: Step) -> mx.array:
        """Bool (B, C)."""


@runtime_checkable
class Stopping(Protocol):
    """When a canvas is done; it is also done after N steps, whatever this says."""

    def __call__(self, step: Step) -> mx.array:
        """Bool (B,): which rows are done."""
