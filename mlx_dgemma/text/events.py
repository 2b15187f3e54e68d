"""What comes out of a run: committed canvases as text while it goes on, a result when it is over."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import mlx.core as mx

from mlx_dgemma.text.reply import ToolCall


@dataclass(frozen=True)
class Stats:
    """Counts, seconds and bytes of a generation so far.

    `tokens` are those of the text, without stop token and padding; `thought_tokens` of them do not show. Of the
    prompt's tokens `cached_tokens` were remembered and not encoded again. `full_steps` is what was computed, canvases
    that were encoded included, in full denoising steps of the published model (see `diffusion.work`). `causal_tokens`
    of the text were written causally, each in a pass of its own. `image_tokens` are those of each image of the prompt,
    and `image_seconds` of `prompt_seconds` the tower took to see those that were encoded.
    """

    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    canvases: int
    steps: int
    seconds: float
    peak_memory: int
    thought_tokens: int = 0
    cached_tokens: int = 0
    full_steps: float = 0.0
    causal_tokens: int = 0
    image_tokens: tuple[int, ...] = ()
    image_seconds: float = 0.0

    @property
    def passes(self) -> int:
        """Denoising steps, and causal passes of one token."""
        return self.steps + self.causal_tokens

    @property
    def prompt_tokens_per_second(self) -> float:
        """Of those that were encoded."""
        encoded = self.prompt_tokens - self.cached_tokens
        return encoded / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the text; 0 where no pass was made, as for a text that was given whole."""
        return self.tokens / self.seconds if self.seconds and self.passes else 0.0

    @property
    def work(self) -> float:
        """Full steps per token of the text; of a text without any, in all."""
        return self.full_steps / max(1, self.tokens)

    @property
    def tokens_per_forward(self) -> float:
        """Text tokens per denoising step or causal pass."""
        return self.tokens / self.passes if self.passes else 0.0


@dataclass(frozen=True)
class TextCanvas:
    """A committed canvas as text, or a span of what is written causally.

    Attributes:
        canvas_index: which canvas, from 0; the spans that follow one another are one canvas, which has no steps.
        canvas: all its token ids.
        tokens: those that belong to the text, the first ones of the canvas: up to the stop token and `max_new_tokens`,
            without padding at the end.
        text: what this canvas adds to the text.
        steps: denoising steps it took.
        finish_reason: None while more is to come, else "stop" (the model's end, or one of the request's stop texts),
            "tool_calls" (the same, behind calls), "length", or "repetition" (a loop).
        stats: of the whole generation so far.
        log_p: of each of the tokens, log-probability under the tempered distribution of the step that settled the
            canvas, nats; 0 for given ones.
        entropy: of that distribution, for each of the tokens, nats; 0 for given ones.
        alternatives: by token, the likeliest ids there and their log-probabilities, likeliest first, as many as the
            request wants; () if it wants none, for an answer of a given form, or when replayed from a trace.
        thought: what this canvas adds to the thoughts.
        tool_calls: calls that ended in it.
        spoken: which of the tokens are the answer's, and no thought's, call's or mark; () when replayed from a
            trace, which does not keep it.
        fault: of the last canvas, why the answer has not the request's `response_format`; "" if it has.
        causal_log_p: of each of the tokens, log-probability by the causal mode behind all that comes before it, at
            temperature 1, nats; given tokens have theirs too. () if the request did not ask, or when replayed from a
            trace.
        stop_text: of the last canvas, which of the request's stop texts ended the answer; "" if none did, or when
            replayed from a trace.
    """

    canvas_index: int
    canvas: list[int]
    tokens: list[int]
    text: str
    steps: int
    finish_reason: str | None
    stats: Stats
    log_p: Sequence[float] = ()
    entropy: Sequence[float] = ()
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    fault: str = ""
    spoken: Sequence[int] = field(default=(), compare=False)
    stop_text: str = field(default="", compare=False)
    alternatives: Sequence[Sequence[tuple[int, float]]] = field(default=(), compare=False)
    causal_log_p: Sequence[float] = field(default=(), compare=False)


@dataclass(frozen=True)
class GenerationResult:
    """A finished generation.

    Attributes:
        text: empty without a tokenizer.
        tokens: of the text.
        canvases: whole ones, with what was cut off and padding.
        steps_per_canvas: denoising steps.
        finish_reason: see `TextCanvas`; or "interrupted".
        stats: counts, seconds and bytes.
        log_p, entropy, alternatives, causal_log_p: of each of the tokens, see `TextCanvas`.
        thought: what the model thought before it answered.
        tool_calls: calls that it makes, in order.
        fault: why the text has not the request's `response_format`; "" if it has.
        stop_text: which of the request's stop texts ended it; "" if none did.
    """

    text: str
    tokens: list[int]
    canvases: list[list[int]]
    steps_per_canvas: list[int]
    finish_reason: str
    stats: Stats
    log_p: Sequence[float] = ()
    entropy: Sequence[float] = ()
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    fault: str = ""
    stop_text: str = ""
    alternatives: Sequence[Sequence[tuple[int, float]]] = ()
    causal_log_p: tuple[float, ...] = ()

    @property
    def mean_causal_log_p(self) -> float | None:
        """Nats per token; None if the request did not ask, or of an empty text."""
        return sum(self.causal_log_p) / len(self.causal_log_p) if self.causal_log_p else None


@dataclass(frozen=True)
class Sample:
    """One of several texts for a prompt.

    Attributes:
        result: what a single run with this seed gives; its statistics are those of the whole batch so far.
        seed: of its noise.
        mean_log_p: nats per token, the log-probability of the text's tokens and the stop token, each under the tempered
            distribution of the step that settled its canvas. Given tokens do not count; 0 if all were given.
    """

    result: GenerationResult
    seed: int
    mean_log_p: float


def collect(canvases: Iterable[TextCanvas], finish_reason: str | None = None) -> GenerationResult:
    """The result of a stream of canvases; `finish_reason` serves if the stream was cut off."""
    done = list(canvases)
    whole = [list(own) for _, own in groupby(done, key=lambda canvas: canvas.canvas_index)]  # spans are of one canvas
    return GenerationResult(
        text="".join(c.text for c in done),
        tokens=[token for c in done for token in c.tokens],
        canvases=[[token for c in own for token in c.canvas] for own in whole],
        steps_per_canvas=[sum(c.steps for c in own) for own in whole],
        finish_reason=(done[-1].finish_reason if done else None) or finish_reason or "length",
        stats=done[-1].stats if done else Stats(0, 0.0, 0, 0, 0, 0.0, mx.get_peak_memory()),
        log_p=[nats for c in done for nats in c.log_p],
        alternatives=[own for c in done for own in c.alternatives],
        entropy=[nats for c in done for nats in c.entropy],
        thought="".join(c.thought for c in done),
        tool_calls=tuple(call for c in done for call in c.tool_calls),
        fault=done[-1].fault if done else "",
        stop_text=done[-1].stop_text if done else "",
        causal_log_p=tuple(nats for c in done for nats in c.causal_log_p),
    )
