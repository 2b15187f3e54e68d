"""Text in, text out: canvases to text, statistics."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_dgemma.diffusion.canvas import DenoisingStep, generate_canvases
from mlx_dgemma.diffusion.noise import Noise, SeededNoise
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.prompts import Prompt, check_ids, prompt_ids
from mlx_dgemma.text.template import CanvasPlan, given_end

THOUGHT_OPEN, THOUGHT_CLOSE = "<|channel>", "<channel|>"


@dataclass(frozen=True)
class Stats:
    """Counts, seconds and bytes of a generation so far. `tokens` are those of the text, stop token excluded."""

    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    canvases: int
    steps: int
    seconds: float
    peak_memory: int

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Text tokens per denoising step."""
        return self.tokens / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class TextCanvas:
    """A committed canvas as text.

    Attributes:
        canvas_index: which canvas, from 0.
        canvas: all its token ids.
        tokens: those that belong to the text: up to the stop token and `max_new_tokens`.
        text: what this canvas adds to the text.
        steps: denoising steps it took.
        finish_reason: None while more is to come, else "stop" or "length".
        stats: of the whole generation so far.
    """

    canvas_index: int
    canvas: list[int]
    tokens: list[int]
    text: str
    steps: int
    finish_reason: str | None
    stats: Stats


@dataclass(frozen=True)
class GenerationResult:
    """A finished generation; `text` is empty without a tokenizer."""

    text: str
    tokens: list[int]
    canvases: list[list[int]]
    steps_per_canvas: list[int]
    finish_reason: str
    stats: Stats


def generate_text(
    model: DiffusionGemma,
    tokenizer: Any,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    seed: int = 0,
    noise: Noise | None = None,
    chat_template: bool = True,
    canvas: Sequence[int | None] | CanvasPlan = (),
) -> GenerationResult:
    """Like `stream_generate`, all at once."""
    stream = stream_generate(
        model, tokenizer, prompt, config, seed=seed, noise=noise, chat_template=chat_template, canvas=canvas
    )
    return collect(event for event in stream if isinstance(event, TextCanvas))


def collect(canvases: Iterator[TextCanvas], finish_reason: str | None = None) -> GenerationResult:
    """The result of a stream of canvases; `finish_reason` serves if the stream was cut off."""
    done = list(canvases)
    return GenerationResult(
        text="".join(c.text for c in done),
        tokens=[token for c in done for token in c.tokens],
        canvases=[c.canvas for c in done],
        steps_per_canvas=[c.steps for c in done],
        finish_reason=(done[-1].finish_reason if done else None) or finish_reason or "length",
        stats=done[-1].stats if done else Stats(0, 0.0, 0, 0, 0, 0.0, mx.get_peak_memory()),
    )


def stream_generate(
    model: DiffusionGemma,
    tokenizer: Any,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    seed: int = 0,
    noise: Noise | None = None,
    chat_template: bool = True,
    canvas: Sequence[int | None] | CanvasPlan = (),
) -> Iterator[DenoisingStep | TextCanvas]:
    """Generates text; one event per denoising step and one per committed canvas, as they happen.

    Args:
        model, tokenizer: from `load`; the tokenizer may be None if the prompt is token ids.
        prompt: text, chat messages ({"role": …, "content": …}), or token ids, which are used as they are.
        config: settings; those not given are the checkpoint's.
        seed: of the built-in noise; ignored if `noise` is given.
        noise: a source of randomness (see `noise.Noise`).
        chat_template: whether a text prompt becomes a user turn of the checkpoint's chat template.
        canvas: token ids by position of the text, None where the model fills in; the given ones stay as they are, and
            generation goes on at least to the last of them. Or a CanvasPlan, which can hold a draft as well.

    Raises:
        DGemmaError: an empty or too long prompt, a token id outside the vocabulary, text without a tokenizer.
    """
    # Checked here, not at the first next(): a bad prompt should fail where it is passed in.
    run = prepare(model, tokenizer, prompt, config, chat_template, canvas)
    return _stream(model, tokenizer, run, noise or SeededNoise(seed, model.config.vocab_size))


@dataclass(frozen=True)
class Run:
    """A checked request: prompt ids, complete settings, how the first canvases are steered, and what they are given."""

    ids: list[int]
    config: GenerationConfig
    steerings: list[Steering]
    given: Sequence[int | None]


def prepare(
    model: DiffusionGemma, tokenizer: Any, prompt: Prompt, config: GenerationConfig | None, chat_template: bool,
    canvas: Sequence[int | None] | CanvasPlan,
) -> Run:  # fmt: skip
    """Checks the arguments of `stream_generate` and turns them into what a run needs."""
    config = (config or GenerationConfig()).over(model.generation_config)
    ids = prompt_ids(tokenizer, prompt, chat_template)
    check_ids(model, ids)
    plan = canvas if isinstance(canvas, CanvasPlan) else CanvasPlan(given=canvas)
    steerings = plan.steerings(model.config.canvas_length, model.config.vocab_size)
    config = replace(config, max_new_tokens=max(config.max_new_tokens, len(plan.given)))
    return Run(ids, config, steerings, plan.given)


def _stream(model: DiffusionGemma, tokenizer: Any, run: Run, noise: Noise) -> Iterator[DenoisingStep | TextCanvas]:
    began = time.perf_counter()
    cache = model.make_cache()
    prefill(model, mx.array([run.ids]), cache)
    transcript = Transcript(tokenizer, run, time.perf_counter() - began)
    max_canvases = math.ceil(run.config.max_new_tokens / model.config.canvas_length)
    for event in generate_canvases(model, cache, run.config, noise, max_canvases, steerings=run.steerings):
        if isinstance(event, DenoisingStep):
            yield event
            continue
        is_last = event.canvas_index + 1 == max_canvases or not has_room_after(model, cache)
        canvas = transcript.add(event.tokens[0].tolist(), event.steps, is_last=is_last)
        yield canvas
        if canvas.finish_reason:
            return


def has_room_after(model: DiffusionGemma, cache: PrefixCache) -> bool:
    """Whether the positions hold one more canvas after the one that is being denoised over this prefix."""
    return cache.length + 2 * model.config.canvas_length <= model.config.max_position_embeddings


class Transcript:
    """The text of one run, canvas by canvas; its clock starts when it is made, after a prefill of `prompt_seconds`."""

    def __init__(self, tokenizer: Any, run: Run, prompt_seconds: float):
        self.run, self.prompt_seconds = run, prompt_seconds
        self.tokens: list[int] = []
        self._steps = self._canvases = 0
        self._given_end = given_end(run.given, run.config.eos_token_id)
        self._decoder = TextDecoder(tokenizer, run.given)
        self._began = time.perf_counter()

    def add(self, canvas: list[int], steps: int, *, is_last: bool) -> TextCanvas:
        """Takes a committed canvas; `is_last` if none can follow whatever it holds."""
        new, stopped = cut(canvas, self.run.config, len(self.tokens), self._given_end)
        self.tokens += new
        self._steps, self._canvases = self._steps + steps, self._canvases + 1
        finish_reason = "stop" if stopped else "length" if is_last else None
        text = self._decoder.add(new, final=finish_reason is not None)
        seconds, peak = time.perf_counter() - self._began, mx.get_peak_memory()
        counts = len(self.tokens), self._canvases, self._steps
        stats = Stats(len(self.run.ids), self.prompt_seconds, *counts, seconds, peak)
        return TextCanvas(self._canvases - 1, canvas, new, text, steps, finish_reason, stats)


def cut(canvas: list[int], config: GenerationConfig, already: int, given_end: int = 0) -> tuple[list[int], bool]:
    """The part of a canvas that belongs to the text, and whether a stop token (not before `given_end`) ended it."""
    room = config.max_new_tokens - already
    stops = [i for i, token in enumerate(canvas) if token in config.eos_token_id and already + i >= given_end]
    if stops and stops[0] <= room:
        return canvas[: stops[0]], True
    return canvas[:room], False


class TextDecoder:
    """Turns growing token ids into growing text, without half characters and thoughts; `given` tokens always show."""

    def __init__(self, tokenizer: Any, given: Sequence[int | None] = ()):
        self.tokenizer, self.given = tokenizer, given
        self.tokens: list[int] = []
        self.text = ""

    def add(self, tokens: list[int], *, final: bool) -> str:
        """The text that these tokens add; bytes of an unfinished character wait for the next call unless final."""
        if self.tokenizer is None:
            return ""
        self.tokens += tokens
        text = self.tokenizer.decode(
            without_thoughts(self.tokenizer, self.tokens, self.given), skip_special_tokens=True
        )
        if not final:
            text = text.rstrip("\ufffd")
            if len(text) < len(self.text):  # an unfinished character spoils the byte tokens before it as well
                return ""
        added = text[len(self.text) :]
        self.text = text
        return added


def without_thoughts(tokenizer: Any, tokens: list[int], given: Sequence[int | None] = ()) -> list[int]:
    """Drops `<|channel>…<channel|>` blocks, which Gemma writes before an answer (empty when thinking is off).

    Tokens that were given stay, unless the block's opening was given as well: the model may open one in a gap.
    """
    vocabulary = tokenizer.get_vocab()
    opening, closing = vocabulary.get(THOUGHT_OPEN), vocabulary.get(THOUGHT_CLOSE)
    visible, hidden, opened_by_user = [], False, False
    for i, token in enumerate(tokens):
        is_given = i < len(given) and given[i] is not None
        if token == opening:
            hidden, opened_by_user = True, is_given
        elif token == closing:
            hidden = False
        elif not hidden or (is_given and not opened_by_user):
            visible.append(token)
    return visible
