"""Committed canvases to text: cut at the end, parsed into answer, thoughts and calls, without padding."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.work import COMMIT, Work
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.endings import StopTexts, repeats
from mlx_dgemma.text.events import Stats, TextCanvas
from mlx_dgemma.text.reply import Reply, ReplyParser, ToolCall
from mlx_dgemma.text.run import Prefix, Run
from mlx_dgemma.text.template import given_end

NO_OPINION = 0.5  # share of the largest possible entropy, above which a canvas of padding comes from damaged weights


@dataclass(frozen=True)
class Committed:
    """A canvas that was committed, position by position.

    Attributes:
        tokens: ids.
        steps: denoising steps it took; 0 for one that was given whole.
        log_p, entropy: of the tokens, and of their distributions, in the step that settled them; nats, 0 where the
            token was given.
        alternatives: by position, the likeliest ids and their log-probabilities then; () if nobody asked.
        work: what the steps computed.
        causal_log_p: of the tokens, by the causal mode; () if nobody asked.
        is_causal: whether it is a span that was written causally.
        goes_on: whether it belongs to the same canvas as the span before it.
    """

    tokens: list[int]
    steps: int
    log_p: list[float]
    entropy: list[float]
    alternatives: Sequence[Sequence[tuple[int, float]]] = ()
    work: Work = field(default_factory=Work)
    causal_log_p: Sequence[float] = ()
    is_causal: bool = False
    goes_on: bool = False


class Clock:
    """Seconds of work since it was made; what a caller does with an event is not the run's time."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        paused = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused


class Transcript:
    """The text of one run, canvas by canvas; its clock starts when it is made, when the prefix is there."""

    def __init__(self, run: Run, prefix: Prefix):
        self.run, self._prefix = run, prefix
        self.position = 0  # where the next canvas begins, in tokens of the text with all that is left out of it
        self._count = self._steps = self._causal = self.canvases = 0
        self._given: Sequence[int | None] = run.given
        self._given_end = given_end(run.given, run.settings.stops)
        self._pad = None if run.tokenizer is None else run.tokenizer.pad_token_id
        self._reply = None if run.tokenizer is None else _Reading(run, run.tokenizer)
        self._work = Work()
        self._previous: list[int] = []  # the last canvas, or as much that was written causally
        self._open: list[int] = []  # what was written causally behind that
        self._ids: list[int] = []  # all that belongs to the text, padding included
        self._called: list[ToolCall] = []
        self.clock = Clock()

    def give(self, ids: Sequence[int]) -> None:
        """What the next canvases begin with is given."""
        self._given = [*[None] * self.position, *ids]
        self._given_end = len(self._given)
        if self._reply is not None:
            self._reply.parser.given = self._given

    def thought_end(self, canvas: Committed) -> int | None:
        """Behind which token of the next canvas the thought ends: 0 if it holds none, None if it goes on."""
        return None if self._reply is None else self._reply.parser.thought_end(canvas.tokens)

    def add(self, canvas: Committed, *, is_last: bool, end: int | None = None, may_repeat: bool = False) -> TextCanvas:
        """Takes a committed canvas, or its tokens up to `end`; `is_last` if none can follow whatever it holds.

        A canvas that goes in a loop is the last one, unless it `may_repeat`.

        Raises:
            DGemmaError: nothing but padding, and no sign that the model meant it.
        """
        new, stopped = cut(canvas.tokens[:end], self.run.settings, self.position, self._given_end)
        reason = "stop" if stopped or self._is_empty(canvas) else None
        previous = self._previous
        if self._repeats(canvas) and reason is None and not may_repeat:
            reason, new = "repetition", [] if canvas.tokens == previous else new
        reason = reason or ("length" if is_last else None)
        reply = Reply(finish_reason=reason)
        if self._reply is not None:
            reply, new = self._reply.add(new, reason)
        kept = [i for i, token in enumerate(new) if token != self._pad or self._is_given(i)]
        length = kept[-1] + 1 if kept else 0  # without padding at the end
        spoken = self._spoken(new[:length])
        self.position += len(new)
        self._ids, self._called = self._ids + new, [*self._called, *reply.tool_calls]
        if reply.finish_reason == "tool_calls":
            self.run.keep_turn(self._ids, self._called)
        self._count += len(kept)
        self._steps, self._work = self._steps + canvas.steps, self._work + canvas.work
        self.canvases += not canvas.goes_on
        self._causal += len(kept) if canvas.is_causal else 0
        return TextCanvas(
            canvas_index=self.canvases - 1,
            canvas=canvas.tokens,
            tokens=new[:length],
            text=reply.content,
            steps=canvas.steps,
            finish_reason=reply.finish_reason,
            stats=self._stats(),
            log_p=canvas.log_p[:length],
            entropy=canvas.entropy[:length],
            alternatives=canvas.alternatives[:length],
            causal_log_p=canvas.causal_log_p[:length],
            thought=reply.thought,
            tool_calls=reply.tool_calls,
            spoken=spoken,
            stop_text="" if self._reply is None else self._reply.stop_text,
        )

    def _spoken(self, new: list[int]) -> list[int]:
        """Which of the next tokens are the answer's."""
        if self._reply is None:
            return list(range(len(new)))
        own = (at - self.position for at in self._reply.parser.positions_from(self.position))
        return [i for i in own if i < len(new) and new[i] != self._pad]

    def written(self, canvas: list[int], length: int) -> np.ndarray:
        """Which positions of a canvas hold the `length` tokens that it gave to the text, or the stop token: (C,)."""
        tokens = np.array(canvas)
        stop = length < len(canvas) and canvas[length] in self.run.settings.stops
        inside = np.arange(len(canvas)) < length + stop
        return inside if self._pad is None else inside & (tokens != self._pad)

    def _is_given(self, position: int) -> bool:
        """Whether the token at a position of the canvas that is being added was the user's."""
        at = self.position + position
        return at < len(self._given) and self._given[at] is not None

    def _is_empty(self, canvas: Committed) -> bool:
        """Whether a canvas that the model wrote holds nothing but padding: then no text follows."""
        if self._pad is None or not canvas.steps or canvas.is_causal or set(canvas.tokens) != {self._pad}:
            return False
        if any(self._is_given(i) for i in range(len(canvas.tokens))):
            return False
        mean = sum(canvas.entropy) / len(canvas.entropy)
        if mean > NO_OPINION * math.log(self.run.model.config.vocab_size):
            raise DGemmaError(
                f"canvas {self.canvases + 1} is nothing but padding, and the model is sure of none of it: the "
                "checkpoint is damaged (load it with verify=True), or memory ran out"
            )
        return True

    def _repeats(self, canvas: Committed) -> bool:
        """Whether a canvas that was denoised goes in a loop, or as many tokens that were written causally do."""
        if canvas.is_causal:
            self._open = [*(self._open if canvas.goes_on else ()), *canvas.tokens]
            if len(self._open) < self.run.model.config.canvas_length:
                return False
        tokens, self._open = (self._open if canvas.is_causal else canvas.tokens), []
        is_loop = repeats(tokens, self._previous)
        self._previous = tokens
        return is_loop and (canvas.is_causal or canvas.steps > 0)

    def _stats(self) -> Stats:
        counts = self._count, self.canvases, self._steps
        measured = self.clock.seconds, mx.get_peak_memory()
        thoughts = 0 if self._reply is None else self._reply.parser.thought_tokens
        prefix, config = self._prefix, self.run.model.config
        work = self._work.full_steps(config.canvas_length, config.vocab_size) + COMMIT * (self.canvases - 1)
        work += COMMIT * self._causal / config.canvas_length  # their heads, a row each, are left out
        known = thoughts, prefix.cached_tokens
        return Stats(
            len(self.run.ids), prefix.seconds, *counts, *measured, *known, full_steps=work, causal_tokens=self._causal,
            image_tokens=tuple(own.tokens for own in self.run.pictures), image_seconds=prefix.image_seconds,
        )  # fmt: skip


class _Reading:
    """What the tokens of a run say, up to its stop texts."""

    def __init__(self, run: Run, tokenizer: Tokenizer):
        self._run, self._tokenizer = run, tokenizer
        self.parser = self._new_parser()
        self._stops = StopTexts(run.request.stop)
        self._ids: list[int] = []  # of earlier canvases
        self._calls = self._thought = 0  # calls and characters of thoughts in these

    def _new_parser(self) -> ReplyParser:
        run, tools = self._run, self._run.request.tools
        one_call = not run.request.parallel_tool_calls
        return ReplyParser(self._tokenizer, prompt=run.ids, tools=tools, given=run.given, one_call=one_call)

    @property
    def stop_text(self) -> str:
        """The stop text that ended the answer, "" if none did."""
        return self._stops.found

    def add(self, new: list[int], reason: str | None) -> tuple[Reply, list[int]]:
        """What the next tokens add, and which of them belong to the text: those up to a stop text, or the only call.

        `reason` says why none follow, None if some may.
        """
        part = self.parser.add(new)
        text = self._stops.add(part.content, final=False)
        thought, calls = part.thought, part.tool_calls
        if self.parser.has_called:
            new, reason = new[: self.parser.position - len(self._ids)], "stop"
        if reason is not None or self._stops.found:
            end = self.parser.end(is_cut=reason in ("length", "repetition"))
            text += self._stops.add(end.content, final=True)
            thought, calls = thought + end.thought, calls + end.tool_calls
            reason = "stop" if self._stops.found else end.finish_reason if reason == "stop" else reason
        if self._stops.found:
            new = new[: self.parser.position_of(self._stops.end) + 1 - len(self._ids)]
            before = self._new_parser().add([*self._ids, *new])  # what the canvas holds behind the stop text is dropped
            thought, calls = before.thought[self._thought :], before.tool_calls[self._calls :]
        self._ids += new
        self._calls, self._thought = self._calls + len(calls), self._thought + len(thought)
        return Reply(text, thought, calls, reason), new


def cut(canvas: list[int], config: GenerationConfig, already: int, given_end: int = 0) -> tuple[list[int], bool]:
    """The part of a canvas that belongs to the text, and whether a stop token (not before `given_end`) ended it."""
    room = config.max_new_tokens - already
    stops = [i for i, token in enumerate(canvas) if token in config.stops and already + i >= given_end]
    if stops and stops[0] <= room:
        return canvas[: stops[0]], True
    return canvas[:room], False
