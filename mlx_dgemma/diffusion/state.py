"""One canvas between its steps: what a step starts from, what it leaves, and the event that tells of it."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Generic

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.denoiser import Begun, Denoiser, Forward
from mlx_dgemma.diffusion.diet import MOVED, TAIL, Shortlist
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.noise import Noise, Rows
from mlx_dgemma.diffusion.sampling import Sampler
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.settled import Settled, Told
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.diffusion.strategies import EarlierStep, Step
from mlx_dgemma.diffusion.vocabulary import Prediction, Query, SoftRows
from mlx_dgemma.diffusion.work import Work
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import host, memory
from mlx_dgemma.model.cache import Slots

CERTAIN = 0.01  # nats; below it, what stands behind the text's end is no part of it


class CanvasState(Generic[Begun]):
    """The state of one canvas (B, C) between its steps."""

    def __init__(
        self, denoiser: Denoiser[Begun], config: GenerationConfig, noise: Noise | Sequence[Noise],
        shape: tuple[int, int], index: int, steering: Steering, alternatives: int = 0,
    ):  # fmt: skip
        self.denoiser, self.config, self.index, self.steering = denoiser, config, index, steering
        self.alternatives = alternatives  # how many are told
        self.noise = Rows(noise, shape)
        self.tokens = steering.start(self.noise)
        self.prediction: Prediction | None = None  # of the step before
        self.rows: SoftRows | None = None
        self.draft, self.log_p = self.tokens, mx.zeros(shape)
        self.finished = mx.zeros(shape[:1], mx.bool_)
        self.sampler = Sampler.of(config)
        self.earlier: tuple[EarlierStep, ...] = ()
        # whether positions may be absent: nothing is given, and a stop token tells how long the text is
        self.may_crop = steering.is_free and bool(config.stops) and config.max_denoising_steps > 2
        self.settled = None if config.rest is None else Settled(config.rest, shape, self._first_size())

    def _first_size(self) -> int:
        """How many positions the first step computes."""
        rule, size = self.config.rest, self.tokens.shape[1]
        return math.ceil(rule.start * size) if rule is not None and self.may_crop else size

    @property
    def positions(self) -> Slots | None:
        """What the next step computes of the canvas; None for all of it."""
        return None if self.settled is None else self.settled.positions

    def forward(self) -> Forward[Begun]:
        """The next step's pass: over all positions, or over those that are present and have not settled."""
        own, soft = self.positions, None if self.prediction is None else self.prediction.soft
        if self.settled is None or own is None:
            return Forward(self.denoiser, self.tokens, soft)
        soft = None if soft is None else soft[:, own.at]
        slots = own if self.settled.computed is not None else None  # keys and values of all that are present are new
        return Forward(self.denoiser, self.tokens[:, own.at], soft, slots)

    def submit(self, forward: Forward[Begun], remaining: int) -> Generator[Forward[Begun], None, "Pending"]:
        """One denoising step, as in the paper's paragraph; starts it and does not wait."""
        sampler, steering, at = self.sampler, self.steering, self.positions
        # 1. the tempered distribution
        confirms = self.settled is not None and self.settled.is_confirming
        temperature = sampler.temperature_at(remaining, self.config.max_denoising_steps, is_published=confirms)
        u = self.noise.uniform() if sampler.choice.draws else None
        if u is not None and at is not None:
            u = u[:, at.at]
        keep, shortlist = self._shortlist(at)
        cutoff, rows = (None, None) if keep else (self.config.soft_embedding_cutoff, self.rows)
        forward.query = Query(temperature, u, remaining > 1, cutoff, rows, self.alternatives, keep, shortlist)
        yield forward
        own = forward.prediction
        assert own is not None  # whoever drives answers before it goes on
        prediction = own if at is None else spread(own, self.prediction or self._nothing(own), at)
        step = self._step(prediction, remaining, temperature)
        # 2. proposal, 3. acceptance, 4. the next canvas
        proposal, accepted = sampler.propose(step), steering.keep_given(sampler.accept(step))
        self.tokens = steering.clamp(sampling.renoise(proposal, accepted, self.noise.tokens()))
        # 5. stop? 6. the draft is committed when the loop ends
        ready = sampler.is_done(step)
        told = [accepted.sum()[None], step.mean_entropy.mean()[None]]
        if self.settled is None:
            self.finished = self.finished | ready
            told += [self.finished]
        else:
            ended = self._ended(step.draft)
            if self.settled.is_full:  # no other one ends a canvas
                self.finished = self.finished | (ready & ended)
            told += [self.finished, ready & ended, ended, self._length(step), self._calm(step, accepted).flatten()]
            told += [self._restless(step, prediction).flatten()]
        summary = mx.concatenate([part.astype(mx.float32) for part in told])
        self.prediction, self.draft, self.log_p = prediction, step.draft, step.log_p
        self.earlier = (*self.earlier, EarlierStep(step.draft, step.entropy, accepted, step.log_p))
        results = [summary, self.tokens, step.draft, step.entropy, accepted, step.log_p]
        optional = (prediction.soft, prediction.groups, *(prediction.alternatives or ()), *(prediction.heaviest or ()))
        memory.start([*results, *(array for array in optional if array is not None)])
        work = Work(own.argmax.size, own.scored, own.mixed)
        return Pending(self.index, step, accepted, summary, prediction, at, work)

    def _step(self, prediction: Prediction, remaining: int, temperature: float) -> Step:
        """What the sampler's strategies are told; rows that are done keep their draft."""
        steering, frozen = self.steering, self.finished[:, None]
        entropy = steering.settled(prediction.entropy)
        return Step(
            canvas=self.tokens,
            draft=mx.where(frozen, self.draft, steering.clamp(prediction.argmax)),
            drawn=prediction.proposal,
            entropy=entropy,
            log_p=mx.where(frozen, self.log_p, steering.settled(prediction.log_p)),
            mean_entropy=steering.mean(entropy),
            given=steering.clamped,
            remaining=remaining,
            max_steps=self.config.max_denoising_steps,
            temperature=temperature,
            earlier=self.earlier,
        )

    def _calm(self, step: Step, accepted: mx.array) -> mx.array:
        """Positions (B, C) where nothing moves: their draft is what it was, accepted, and in the next canvas."""
        assert self.settled is not None
        if not step.earlier:
            return mx.zeros_like(accepted)
        stays = (step.draft == step.earlier[-1].draft) & (step.draft == self.tokens)
        return stays & accepted & (step.entropy < self.settled.rule.entropy)

    def _shortlist(self, at: Slots | None) -> tuple[int, Shortlist | None]:
        """How many groups of ids are kept for a vocabulary diet, and those of the next step if it is on one."""
        if self.settled is None or self.settled.rule.walk_every is None or self.alternatives:
            return 0, None
        heaviest = None if self.prediction is None else self.prediction.heaviest
        if self.settled.walks or heaviest is None:
            return self.settled.rule.groups, None
        (groups, tail), restless = heaviest, self.settled.restless
        if at is not None:
            groups, tail, restless = groups[:, at.at], tail[:, at.at], restless[:, np.array(at.at)]
        return self.settled.rule.groups, Shortlist.of(groups, tail, restless)

    def _restless(self, step: Step, prediction: Prediction) -> mx.array:
        """Positions (B, C) that the heaviest groups of ids do not speak for."""
        if prediction.heaviest is None or not step.earlier:
            return mx.ones_like(step.draft).astype(mx.bool_)
        moved = mx.abs(mx.exp(step.log_p) - mx.exp(step.earlier[-1].log_p)) > MOVED
        return moved | (prediction.heaviest[1] > TAIL)

    def _ended(self, draft: mx.array) -> mx.array:
        """By row (B,), whether the draft's present positions have a stop token; true where all are present."""
        assert self.settled is not None
        if self.settled.size == self.settled.width:
            return mx.ones(draft.shape[:1], mx.bool_)
        stops = mx.array(self.config.stops)
        return (draft[:, : self.settled.size, None] == stops).any(axis=(1, 2))

    def _length(self, step: Step) -> mx.array:
        """By row (B,), positions up to the draft's first stop token, or to the last uncertain one; C without a stop."""
        size = step.draft.shape[1]
        if not self.may_crop or (self.settled is not None and self.settled.rule.crop == 1):
            return mx.full(step.draft.shape[:1], size)
        is_stop = (step.draft[..., None] == mx.array(self.config.stops)).any(axis=-1)
        open_ = (mx.cumsum(is_stop, axis=-1) == 0) | (step.entropy > CERTAIN)
        last = mx.where(open_, mx.arange(size) + 1, 0).max(axis=-1)
        return mx.where(is_stop.any(axis=-1), last + 1, size)

    def _nothing(self, like: Prediction) -> Prediction:
        """What is predicted of positions that are absent: the text's end, of which there is no doubt."""
        shape = self.tokens.shape

        def empty(array: mx.array, value: int = 0) -> mx.array:
            return mx.full((*shape, *array.shape[2:]), value, array.dtype)

        end, likely = empty(like.argmax, self.config.stops[0]), like.alternatives
        return replace(
            like,
            argmax=end,
            proposal=end,
            entropy=empty(like.entropy),
            log_p=empty(like.log_p),
            soft=None if like.soft is None else empty(like.soft),
            groups=None if like.groups is None else empty(like.groups),
            alternatives=None if likely is None else (empty(likely[0]), empty(likely[1])),
            heaviest=None if like.heaviest is None else (empty(like.heaviest[0]), empty(like.heaviest[1])),
        )

    def learn(self, event: DenoisingStep, pending: "Pending") -> None:
        """Takes from a step that was read what the next one depends on, arrays apart."""
        self.noise.active = [not finished for finished in event.finished_rows]  # rows that are done draw no more
        if self.settled is not None and not event.finished:
            present = self.settled.size
            self.settled.learn(pending.told(), is_last=event.remaining == 2)
            if self.settled.size > present:  # what becomes present is noise, as at a canvas' start
                is_new = mx.arange(self.settled.width) >= present
                self.tokens = mx.where(is_new, self.noise.tokens(), self.tokens)
        groups, at = pending.prediction.groups, self.positions
        if groups is not None:
            self.rows = SoftRows.of(groups if at is None else groups[:, at.at])


def spread(own: Prediction, before: Prediction, slots: Slots) -> Prediction:
    """A prediction of some positions (B, R), put over that of all (B, C) of the step before."""

    def put(new: mx.array, old: mx.array) -> mx.array:
        whole = old[...]  # under a name of its own
        whole[:, slots.at] = new
        return whole

    def maybe(new: mx.array | None, old: mx.array | None) -> mx.array | None:
        return None if new is None or old is None else put(new, old)

    pairs = [put(*both) for both in zip(own.alternatives or (), before.alternatives or (), strict=True)]
    groups = [put(*both) for both in zip(own.heaviest or (), before.heaviest or (), strict=True)]
    return replace(
        own,
        argmax=put(own.argmax, before.argmax),
        proposal=put(own.proposal, before.proposal),
        entropy=put(own.entropy, before.entropy),
        log_p=put(own.log_p, before.log_p),
        soft=maybe(own.soft, before.soft),
        groups=maybe(own.groups, before.groups),
        alternatives=(pairs[0], pairs[1]) if pairs else None,
        heaviest=(groups[0], groups[1]) if groups else None,
    )


@dataclass(frozen=True)
class Pending:
    """A step that runs, and the summary that the host waits for.

    Attributes:
        index: of the canvas.
        step: what the strategies were told.
        accepted: (B, C).
        summary: accepted count, mean entropy, finished rows; with settling, what `told` takes apart.
        prediction: of all positions.
        at: the positions that were computed; None for all.
        work: what was computed.
    """

    index: int
    step: Step
    accepted: mx.array
    summary: mx.array
    prediction: Prediction
    at: Slots | None
    work: Work

    def told(self) -> Told:
        """What settling learns of the step."""
        batch, size = self.accepted.shape
        numbers = np.array(host.floats(self.summary)[2:])
        finished, ready, ended, length, positions = np.split(numbers, [batch, 2 * batch, 3 * batch, 4 * batch])
        calm, restless = positions.reshape(2, batch, size) == 1
        return Told(calm, ready == 1, ended == 1, length.astype(int), finished == 1, restless)

    def read(self) -> DenoisingStep:
        """The event: the step's one host synchronisation."""
        accepted_count, mean_entropy, *flags = host.floats(self.summary)
        if not math.isfinite(mean_entropy):
            raise DGemmaError(
                f"canvas {self.index + 1}: the model's output is not a number; the checkpoint is damaged (load it with "
                "verify=True), or its type overflows (use bfloat16)"
            )
        step, finished_rows = self.step, tuple(flag == 1.0 for flag in flags[: len(self.accepted)])
        return DenoisingStep(
            canvas_index=self.index,
            step=step.max_steps - step.remaining + 1,
            remaining=step.remaining,
            temperature=step.temperature,
            canvas=step.canvas,
            draft=step.draft,
            entropy=step.entropy,
            accepted=self.accepted,
            accepted_count=int(accepted_count),
            mean_entropy=mean_entropy,
            finished=all(finished_rows) or step.remaining == 1,
            clamped=None if step.given is None else mx.broadcast_to(step.given, step.canvas.shape),
            log_p=step.log_p,
            finished_rows=finished_rows,
            alternatives=self.prediction.alternatives,
            computed=None if self.at is None else tuple(host.ints(self.at.at)),
            work=self.work,
        )
