"""Block diffusion: `denoise_canvas` refines one canvas, `generate_canvases` stitches canvases onto the prefix.

Both are generators of typed events over token ids; they know nothing of text or terminals. `refine` and `stitch` are
the same for who shares forward passes with others (see `denoiser`).
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import mlx.core as mx

from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.denoiser import Begun, Denoiser, Forward, ModelDenoiser, Pause, alone, pauses
from mlx_dgemma.diffusion.noise import Noise, Rows
from mlx_dgemma.diffusion.sampling import Sampler
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.diffusion.strategies import EarlierStep, Step
from mlx_dgemma.diffusion.vocabulary import Alternatives, Prediction, Query, SoftRows
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import cpu, host, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import chunks


@dataclass(frozen=True)
class DenoisingStep:
    """One executed denoising step; arrays are (B, C).

    Attributes:
        canvas_index: which canvas, from 0.
        step: which step of it, from 1.
        remaining: steps left including this one, N … 1 (the schedule's n).
        temperature: what the logits were divided by.
        canvas: ids the step started from.
        draft: argmax ids, what would be committed now.
        entropy: nats per position.
        log_p: log-probability of the draft's tokens, tempered, nats; of a finished row, when it finished.
        accepted: bool per position.
        accepted_count: positions accepted, over all rows.
        mean_entropy: nats, over all positions.
        finished: whether the canvas is done.
        clamped: bool per position, the ones that a steered canvas keeps fixed; None where nothing is.
        finished_rows: by row, whether it is done; () when replayed from a trace, which does not keep it.
        alternatives: the likeliest ids and their log-probabilities, (B, C, K), if any were asked for; not replayed.
    """

    canvas_index: int
    step: int
    remaining: int
    temperature: float
    canvas: mx.array
    draft: mx.array
    entropy: mx.array
    log_p: mx.array
    accepted: mx.array
    accepted_count: int
    mean_entropy: float
    finished: bool
    clamped: mx.array | None = None
    finished_rows: tuple[bool, ...] = ()
    alternatives: Alternatives | None = None


@dataclass(frozen=True)
class CommittedCanvas:
    """A finished canvas: its argmax ids (B, C) and the number of denoising steps it took."""

    canvas_index: int
    tokens: mx.array
    steps: int


def denoise_canvas(
    denoiser: Denoiser[Begun], config: GenerationConfig, noise: Noise | Sequence[Noise], shape: tuple[int, int],
    canvas_index: int = 0, steering: Steering | None = None,
) -> Iterator[DenoisingStep]:  # fmt: skip
    """Refines one canvas of `shape` (B, C) from uniform noise; the last event's draft is the result.

    With several rows, a row that is done keeps its draft while the others go on; with a sequence of noise sources each
    row has its own, from which it draws until it is done. Nothing is yielded for a canvas that is given whole.

    The next step's graph is built while a step runs. A GPU gets it as soon as this step's flags are read, and computes
    while the caller looks at the event; so one step is ahead when the caller closes the generator early. A CPU would
    compute it at once: there the event comes first.

    Raises:
        DGemmaError: the model's output is not a number, or a strategy gave a wrong answer.
    """
    return alone(refine(denoiser, config, noise, shape, canvas_index, steering))


def refine(
    denoiser: Denoiser[Begun], config: GenerationConfig, noise: Noise | Sequence[Noise], shape: tuple[int, int],
    canvas_index: int = 0, steering: Steering | None = None, alternatives: int = 0,
) -> Generator[Forward[Begun] | DenoisingStep, None, None]:  # fmt: skip
    """`denoise_canvas`, whose passes somebody else answers; none is ahead of the events that was not begun in time."""
    canvas = _Canvas(denoiser, config, noise, shape, canvas_index, steering or Steering(None, None))
    canvas.alternatives = alternatives
    if canvas.steering.is_complete:
        return
    pending = yield from canvas.submit(Forward(denoiser, canvas.tokens, None), config.max_denoising_steps)
    while pending.step.remaining > 1:
        ahead = Forward(denoiser, canvas.tokens, canvas.soft)
        try:
            yield ahead
            event = pending.read()
            canvas.learn(event, pending.groups)
            is_eager = ahead.is_begun and not cpu.on_cpu()
            if is_eager and not event.finished:
                pending = yield from canvas.submit(ahead, event.remaining - 1)
            yield event
            if event.finished:
                return
            if not is_eager:
                pending = yield from canvas.submit(ahead, event.remaining - 1)
        finally:
            ahead.cancel()
    yield pending.read()


class _Canvas(Generic[Begun]):
    """The state of one canvas between its steps."""

    def __init__(
        self, denoiser: Denoiser[Begun], config: GenerationConfig, noise: Noise | Sequence[Noise],
        shape: tuple[int, int], index: int, steering: Steering,
    ):  # fmt: skip
        self.denoiser, self.config, self.index, self.steering = denoiser, config, index, steering
        self.noise = Rows(noise, shape)
        self.tokens = steering.start(self.noise)
        self.soft: mx.array | None = None
        self.rows: SoftRows | None = None
        self.draft, self.log_p = self.tokens, mx.zeros(shape)
        self.finished = mx.zeros(shape[:1], mx.bool_)
        self.sampler = Sampler.of(config)
        self.earlier: tuple[EarlierStep, ...] = ()
        self.alternatives = 0  # how many are told

    def submit(self, forward: Forward[Begun], remaining: int) -> Generator[Forward[Begun], None, "_Pending"]:
        """One denoising step, as in the paper's paragraph; starts it and does not wait."""
        sampler, steering = self.sampler, self.steering
        # 1. the tempered distribution
        temperature = sampler.temperature_at(remaining, self.config.max_denoising_steps)
        u = self.noise.uniform() if sampler.choice.draws else None
        cutoff = self.config.soft_embedding_cutoff
        forward.query = Query(temperature, u, remaining > 1, cutoff, self.rows, self.alternatives)
        yield forward
        prediction = forward.prediction
        assert prediction is not None  # whoever drives answers before it goes on
        step = self._step(prediction, remaining, temperature)
        # 2. proposal, 3. acceptance, 4. the next canvas
        proposal, accepted = sampler.propose(step), steering.keep_given(sampler.accept(step))
        self.tokens = steering.clamp(sampling.renoise(proposal, accepted, self.noise.tokens()))
        # 5. stop? 6. the draft is committed when the loop ends
        self.finished = self.finished | sampler.is_done(step)
        self.draft, self.log_p, self.soft = step.draft, step.log_p, prediction.soft
        self.earlier = (*self.earlier, EarlierStep(step.draft, step.entropy, accepted))
        told = [accepted.sum()[None], step.mean_entropy.mean()[None], self.finished]
        summary = mx.concatenate(told).astype(mx.float32)
        results = [
            summary,
            self.tokens,
            step.draft,
            step.entropy,
            accepted,
            step.log_p,
            *(prediction.alternatives or ()),
        ]
        memory.start([*results, *(a for a in (self.soft, prediction.groups) if a is not None)])
        return _Pending(self.index, step, accepted, summary, prediction)

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

    def learn(self, event: DenoisingStep, groups: mx.array | None) -> None:
        """Takes from a step that was read what the next one depends on, arrays apart."""
        self.noise.active = [not finished for finished in event.finished_rows]  # rows that are done draw no more
        self.rows = None if groups is None else SoftRows.of(groups)


@dataclass(frozen=True)
class _Pending:
    """A step that runs, and the summary that the host waits for."""

    index: int
    step: Step
    accepted: mx.array
    summary: mx.array  # accepted count, mean entropy, finished rows
    prediction: Prediction

    @property
    def groups(self) -> mx.array | None:
        """See `Prediction`."""
        return self.prediction.groups

    def read(self) -> DenoisingStep:
        """The event: the step's one host synchronisation."""
        accepted_count, mean_entropy, *flags = host.floats(self.summary)
        if not math.isfinite(mean_entropy):
            raise DGemmaError(
                f"canvas {self.index + 1}: the model's output is not a number; the checkpoint is damaged (load it with "
                "verify=True), or its type overflows (use bfloat16)"
            )
        step, finished_rows = self.step, tuple(flag == 1.0 for flag in flags)
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
        )


def generate_canvases(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise | Sequence[Noise],
    max_canvases: int, batch: int = 1, steerings: Sequence[Steering] = (),
) -> Iterator[DenoisingStep | CommittedCanvas]:  # fmt: skip
    """Denoises canvas after canvas; each committed one is encoded into the prefix before the next begins.

    `steerings` steer the first canvases, one each. Ends after `max_canvases`, or when the positions run out; the caller
    closes the generator to stop earlier (at a stop token, say).
    """
    return alone(stitch(model, cache, config, noise, max_canvases, batch, steerings))


def stitch(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise | Sequence[Noise],
    max_canvases: int, batch: int = 1, steerings: Sequence[Steering] = (), alternatives: int = 0,
) -> Generator[Pause | DenoisingStep | CommittedCanvas, None, None]:  # fmt: skip
    """`generate_canvases`, whose passes somebody else answers."""
    shape = batch, model.config.canvas_length
    with memory.wired(model.nbytes + cache.nbytes):
        yield from _stitch(model, cache, config, noise, shape, max_canvases, steerings, alternatives)


def _stitch(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise | Sequence[Noise],
    shape: tuple[int, int], max_canvases: int, steerings: Sequence[Steering], alternatives: int,
) -> Generator[Pause | DenoisingStep | CommittedCanvas, None, None]:  # fmt: skip
    denoiser = ModelDenoiser(model, cache)
    for index in range(max_canvases):
        if cache.length + shape[1] > model.config.max_position_embeddings:
            return
        steering = steerings[index] if index < len(steerings) else None
        step: DenoisingStep | None = None
        for event in refine(denoiser, config, noise, shape, index, steering, alternatives):
            step = event if isinstance(event, DenoisingStep) else step
            yield event
        if step is not None:
            draft = step.draft
        else:
            assert steering is not None and steering.given is not None  # no step is made for a canvas given whole
            draft = mx.broadcast_to(steering.given, shape)
        mx.clear_cache()  # buffers of this canvas's sizes; the next prefix is longer, or there is none
        yield CommittedCanvas(index, draft, step.step if step else 0)
        if index + 1 < max_canvases:
            yield from pauses(chunks(model, draft, cache))
