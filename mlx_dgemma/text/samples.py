"""Several samples of one prompt at once: rows of a batch over one prefix, each with noise of its own."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.canvas import DenoisingStep, ModelDenoiser, denoise_canvas
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.generation import GenerationResult, Run, TextCanvas, Transcript, collect, has_room_after, prepare
from mlx_dgemma.text.prompts import Prompt
from mlx_dgemma.text.template import CanvasPlan


@dataclass(frozen=True)
class Sample:
    """One of several texts for a prompt.

    Attributes:
        result: what `generate_text` with this seed gives; its statistics are those of the whole batch so far.
        seed: of its noise.
        mean_log_p: nats per token, the log-probability of the text's tokens and the stop token, each under the tempered
            distribution of the step that settled its canvas. Given tokens do not count; 0 if all were given.
    """

    result: GenerationResult
    seed: int
    mean_log_p: float


def generate_samples(
    model: DiffusionGemma,
    tokenizer: Any,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    n: int,
    seed: int = 0,
    chat_template: bool = True,
    canvas: Sequence[int | None] | CanvasPlan = (),
) -> list[Sample]:
    """`n` texts for one prompt, the likeliest (`mean_log_p`) first; see `stream_samples`."""
    stream = stream_samples(
        model, tokenizer, prompt, config, n=n, seed=seed, chat_template=chat_template, canvas=canvas
    )
    return [event for event in stream if isinstance(event, Sample)]


def stream_samples(
    model: DiffusionGemma,
    tokenizer: Any,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    n: int,
    seed: int = 0,
    chat_template: bool = True,
    canvas: Sequence[int | None] | CanvasPlan = (),
) -> Iterator[DenoisingStep | Sample]:
    """The denoising steps of all samples as they happen, then the samples, best first.

    Sample i has the noise of seed + i and is what `generate_text` gives with that seed. The prompt is encoded once; its
    keys and values are then there `n` times, as MLX has no attention over a prefix that rows share. A row whose text
    has ended leaves the batch with its canvas.

    Args:
        model, tokenizer, prompt, config, chat_template, canvas: as for `stream_generate`.
        n: how many samples.
        seed: of the first.

    Raises:
        DGemmaError: n below 1, and what `stream_generate` refuses.
    """
    if type(n) is not int or n < 1:
        raise DGemmaError(f"the number of samples must be an integer from 1 on, got {n!r}")
    run = prepare(model, tokenizer, prompt, config, chat_template, canvas)
    return _stream(model, tokenizer, run, range(seed, seed + n))


def _stream(model: DiffusionGemma, tokenizer: Any, run: Run, seeds: range) -> Iterator[DenoisingStep | Sample]:
    began = time.perf_counter()
    cache = model.make_cache()
    prefill(model, mx.array([run.ids]), cache)
    seconds = time.perf_counter() - began
    rows = [
        _Row(seed, SeededNoise(seed, model.config.vocab_size), Transcript(tokenizer, run, seconds)) for seed in seeds
    ]
    active, cache = rows, cache.take([0] * len(rows))
    with memory.wired():
        for index in range(math.ceil(run.config.max_new_tokens / model.config.canvas_length)):
            steering = run.steerings[index] if index < len(run.steerings) else None
            draft = yield from _denoise(model, cache, run.config, active, index, steering)
            is_last = (index + 1) * model.config.canvas_length >= run.config.max_new_tokens
            is_last = is_last or not has_room_after(model, cache)
            going_on = [i for i, row in enumerate(active) if row.commit(draft[i].tolist(), is_last=is_last)]
            mx.clear_cache()
            if not going_on:
                break
            if len(going_on) < len(active):
                active, cache, draft = [active[i] for i in going_on], cache.take(going_on), draft[mx.array(going_on)]
            prefill(model, draft, cache)
    yield from sorted((row.sample() for row in rows), key=lambda sample: -sample.mean_log_p)


def _denoise(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, rows: list["_Row"], index: int,
    steering: Steering | None,
) -> Iterator[DenoisingStep]:  # fmt: skip
    """Denoises one canvas of every row and tells the rows how that went; returns the canvases (B, C)."""
    shape = (len(rows), model.config.canvas_length)
    for row in rows:
        row.begin(steering)
    step, noises = None, [row.noise for row in rows]
    for step in denoise_canvas(ModelDenoiser(model, cache), config, noises, shape, index, steering):
        for row, is_done in zip(rows, step.finished_rows, strict=True):
            row.note_step(is_done=is_done)
        yield step
    if step is None:
        return mx.broadcast_to(steering.given, shape)
    for row, log_p in zip(rows, np.array(step.log_p), strict=True):
        row.log_p = log_p
    return step.draft


class _Row:
    """One sample while it grows."""

    def __init__(self, seed: int, noise: SeededNoise, transcript: Transcript):
        self.seed, self.noise, self.transcript = seed, noise, transcript
        self.canvases: list[TextCanvas] = []
        self.scored: list[float] = []  # log-probabilities of the text so far

    def begin(self, steering: Steering | None) -> None:
        """A new canvas."""
        self.steps, self.is_done = 0, False
        self.log_p = np.zeros(0)
        clamped = None if steering is None else steering.clamped
        self.clamped = None if clamped is None else np.array(clamped)[0]

    def note_step(self, *, is_done: bool) -> None:
        """A denoising step, which counts unless the row was done before."""
        self.steps += not self.is_done
        self.is_done = is_done

    def commit(self, canvas: list[int], *, is_last: bool) -> bool:
        """Takes the canvas; returns whether the text goes on."""
        done = self.transcript.add(canvas, self.steps, is_last=is_last)
        self.canvases.append(done)
        belongs = len(done.tokens) + (done.finish_reason == "stop")  # the stop token was the model's choice as well
        free = slice(None) if self.clamped is None else ~self.clamped[:belongs]
        self.scored += self.log_p[:belongs][free].tolist() if self.log_p.size else []
        return done.finish_reason is None

    def sample(self) -> Sample:
        mean = sum(self.scored) / len(self.scored) if self.scored else 0.0
        return Sample(collect(self.canvases), self.seed, mean)
