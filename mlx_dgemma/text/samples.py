"""Several samples of one prompt at once: rows of a batch over one prefix, each with noise of its own."""

import contextlib
from collections.abc import Generator, Iterator

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.shared import make_denoiser
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.diffusion.work import Work
from mlx_dgemma.model import host, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.events import Sample, TextCanvas, collect
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.transcript import Committed, Transcript


def stream_batch(run: Run) -> Iterator[DenoisingStep | Sample]:
    """The denoising steps of all samples as they happen, then the samples, best first.

    The prompt is encoded once; its keys and values are then there once a sample, as MLX has no attention over a prefix
    that rows share. A row whose text has ended leaves the batch with its canvas.
    """
    with memory.explained():
        yield from _stream(run)


def _stream(run: Run) -> Iterator[DenoisingStep | Sample]:
    prefix = run.prefix()
    first, vocab_size = run.request.seed, run.model.config.vocab_size
    seeds = range(first, first + run.request.samples)
    rows = [_Row(seed, SeededNoise(seed, vocab_size), Transcript(run, prefix)) for seed in seeds]
    active, cache = rows, prefix.cache.take([0] * len(rows))
    with memory.wired(run.model.nbytes + cache.nbytes):
        for index in range(run.max_canvases):
            draft = yield from _denoise(run, cache, active, index)
            is_last = run.is_last(index, cache)
            going_on = [i for i, row in enumerate(active) if row.commit(host.ints(draft[i]), is_last=is_last)]
            mx.clear_cache()
            if not going_on:
                break
            if len(going_on) < len(active):
                active, cache, draft = [active[i] for i in going_on], cache.take(going_on), draft[mx.array(going_on)]
            prefill(run.model, draft, cache)
    yield from sorted((row.sample() for row in rows), key=lambda sample: -sample.mean_log_p)


def _denoise(run: Run, cache: PrefixCache, rows: list["_Row"], index: int) -> Generator[DenoisingStep, None, mx.array]:
    """Denoises one canvas of every row and tells the rows how that went; returns the canvases (B, C)."""
    steering = run.steerings[index] if index < len(run.steerings) else Steering(None, None)
    shape = (len(rows), run.model.config.canvas_length)
    for row in rows:
        row.begin(steering)
    noises = [row.noise for row in rows]
    draft = steering.clamp(mx.zeros(shape, mx.int32))  # of a canvas that is given whole, for which no step is made
    for step in denoise_canvas(make_denoiser(run.model, cache), run.settings, noises, shape, index, steering):
        draft = step.draft
        for number, row in enumerate(rows):
            row.note(step, number)
        with contextlib.ExitStack() as stack:
            for row in rows:
                stack.enter_context(row.transcript.clock.paused())
            yield step
    return draft


class _Row:
    """One sample while it grows."""

    def __init__(self, seed: int, noise: SeededNoise, transcript: Transcript):
        self.seed, self.noise, self.transcript = seed, noise, transcript
        self.canvases: list[TextCanvas] = []
        self.scored: list[float] = []  # log-probabilities of the text so far

    def begin(self, steering: Steering) -> None:
        """A new canvas."""
        self.steps, self.work, self.is_done = 0, Work(), False
        self.settled: tuple[mx.array, mx.array] | None = None  # log-probabilities and entropies, (C,) each
        self.clamped = None if steering.clamped is None else np.array(steering.clamped)[0]

    def note(self, step: DenoisingStep, number: int) -> None:
        """A denoising step of the batch, in which this is row `number`; it counts unless the row was done before."""
        if not self.is_done:
            self.steps, self.work = self.steps + 1, self.work + step.work.share(len(step.finished_rows))
            self.settled = step.log_p[number], step.entropy[number]
            self.is_done = step.finished_rows[number]

    def commit(self, canvas: list[int], *, is_last: bool) -> bool:
        """Takes the canvas; returns whether the text goes on."""
        nothing = np.zeros(len(canvas))
        log_p, entropy = (nothing, nothing) if self.settled is None else map(np.array, self.settled)
        begins = self.transcript.position
        committed = Committed(canvas, self.steps, log_p.tolist(), entropy.tolist(), work=self.work)
        done = self.transcript.add(committed, is_last=is_last)
        self.canvases.append(done)
        if self.settled is not None:
            scored = self.transcript.written(canvas, self.transcript.position - begins)
            free = scored if self.clamped is None else scored & ~self.clamped
            self.scored += log_p[free].tolist()
        return done.finish_reason is None

    def sample(self) -> Sample:
        mean = sum(self.scored) / len(self.scored) if self.scored else 0.0
        return Sample(collect(self.canvases), self.seed, mean)
