"""Committed canvases to text: cut at the end, decoded without half characters, padding and thoughts."""

import codecs
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.events import Stats, TextCanvas
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.template import given_end

THOUGHT_OPEN, THOUGHT_CLOSE = "<|channel>", "<channel|>"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how vocabularies with byte fallback name the 256 bytes
NO_OPINION = 0.5  # share of the largest possible entropy, above which a canvas of padding comes from damaged weights


@dataclass(frozen=True)
class Committed:
    """A canvas that was committed, position by position.

    Attributes:
        tokens: ids.
        steps: denoising steps it took; 0 for one that was given whole.
        log_p, entropy: of the tokens, and of their distributions, in the step that settled them; nats, 0 where the
            token was given.
    """

    tokens: list[int]
    steps: int
    log_p: list[float]
    entropy: list[float]


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
    """The text of one run, canvas by canvas; its clock starts when it is made, after a prefill of `prompt_seconds`."""

    def __init__(self, run: Run, prompt_seconds: float):
        self.run, self.prompt_seconds = run, prompt_seconds
        self.position = 0  # where the next canvas begins, in tokens of the text with all that is left out of it
        self._count = self._steps = self._canvases = 0
        self._given_end = given_end(run.given, run.settings.stops)
        self._pad = None if run.tokenizer is None else run.tokenizer.pad_token_id
        self._decoder = TextDecoder(run.tokenizer, run.given, thinks=is_thinking(run.tokenizer, run.ids))
        self.clock = Clock()

    def add(self, canvas: Committed, *, is_last: bool) -> TextCanvas:
        """Takes a committed canvas; `is_last` if none can follow whatever it holds.

        Raises:
            DGemmaError: nothing but padding, and no sign that the model meant it.
        """
        new, stopped = cut(canvas.tokens, self.run.settings, self.position, self._given_end)
        stopped = stopped or self._is_empty(canvas)
        finish_reason = "stop" if stopped else "length" if is_last else None
        text = self._decoder.add(new, final=finish_reason is not None, is_cut=finish_reason == "length")
        kept = [i for i, token in enumerate(new) if token != self._pad or self._is_given(i)]
        length = kept[-1] + 1 if kept else 0  # without padding at the end
        self.position += len(new)
        self._count += len(kept)
        self._steps, self._canvases = self._steps + canvas.steps, self._canvases + 1
        known = self._canvases - 1, canvas.tokens, new[:length], text, canvas.steps, finish_reason, self._stats()
        return TextCanvas(*known, canvas.log_p[:length], canvas.entropy[:length])

    def written(self, canvas: list[int], length: int) -> np.ndarray:
        """Which positions of a canvas hold the `length` tokens that it gave to the text, or the stop token: (C,)."""
        tokens = np.array(canvas)
        stop = length < len(canvas) and canvas[length] in self.run.settings.stops
        inside = np.arange(len(canvas)) < length + stop
        return inside if self._pad is None else inside & (tokens != self._pad)

    def _is_given(self, position: int) -> bool:
        """Whether the token at a position of the canvas that is being added was the user's."""
        at = self.position + position
        return at < len(self.run.given) and self.run.given[at] is not None

    def _is_empty(self, canvas: Committed) -> bool:
        """Whether a canvas that the model wrote holds nothing but padding: then no text follows."""
        if self._pad is None or not canvas.steps or set(canvas.tokens) != {self._pad}:
            return False
        if any(self._is_given(i) for i in range(len(canvas.tokens))):
            return False
        mean = sum(canvas.entropy) / len(canvas.entropy)
        if mean > NO_OPINION * math.log(self.run.model.config.vocab_size):
            raise DGemmaError(
                f"canvas {self._canvases + 1} is nothing but padding, and the model is sure of none of it: the "
                "checkpoint is damaged (load it with verify=True), or memory ran out"
            )
        return True

    def _stats(self) -> Stats:
        counts = self._count, self._canvases, self._steps
        measured = self.clock.seconds, mx.get_peak_memory()
        return Stats(len(self.run.ids), self.prompt_seconds, *counts, *measured, self._decoder.thought_tokens)


def cut(canvas: list[int], config: GenerationConfig, already: int, given_end: int = 0) -> tuple[list[int], bool]:
    """The part of a canvas that belongs to the text, and whether a stop token (not before `given_end`) ended it."""
    room = config.max_new_tokens - already
    stops = [i for i, token in enumerate(canvas) if token in config.stops and already + i >= given_end]
    if stops and stops[0] <= room:
        return canvas[: stops[0]], True
    return canvas[:room], False


class TextDecoder:
    """Turns growing token ids into growing text, without half characters and thoughts; `given` tokens always show.

    What it gives piece by piece is, joined, what it gives for all tokens at once.
    """

    def __init__(self, tokenizer: Tokenizer | None, given: Sequence[int | None] = (), *, thinks: bool = False):
        """`thinks`: the prompt has opened a thought already."""
        self.tokenizer, self.given, self.thinks = tokenizer, given, thinks
        self.tokens: list[int] = []
        self.text = ""
        self.thought_tokens = 0

    def add(self, tokens: list[int], *, final: bool, is_cut: bool = False) -> str:
        """The text that these tokens add.

        Args:
            tokens: the next ones.
            final: whether none follow; until then bytes of a character wait, as the next ones decide what they are.
            is_cut: whether the end is not the model's: an unfinished character there is left out.
        """
        if self.tokenizer is None:
            return ""
        self.tokens += tokens
        visible = without_thoughts(self.tokenizer, self.tokens, self.given, thinks=self.thinks)
        self.thought_tokens = len(self.tokens) - len(visible)
        data = trailing_bytes(self.tokenizer, visible)
        waiting = len(data) if not final else unfinished(data) if is_cut else 0
        text = self.tokenizer.decode(visible[: len(visible) - waiting], skip_special_tokens=True)
        if not final or is_cut:
            text = text.rstrip("\ufffd")  # half a character of a vocabulary that names its bytes otherwise
        if len(text) < len(self.text):
            return ""
        added = text[len(self.text) :]
        self.text = text
        return added


def trailing_bytes(tokenizer: Tokenizer, tokens: list[int]) -> bytes:
    """What the byte tokens at the end stand for, a byte a token."""
    data = bytearray()
    for token in reversed(tokens):
        name = BYTE.fullmatch(tokenizer.convert_ids_to_tokens([token])[0])
        if name is None:
            break
        data.append(int(name[1], 16))
    return bytes(reversed(data))


def unfinished(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that does not end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(decoder.getstate()[0])


def is_thinking(tokenizer: Tokenizer | None, prompt: Sequence[int]) -> bool:
    """Whether a prompt leaves a thought open, which the answer then goes on with."""
    if tokenizer is None:
        return False
    opening, closing = _thought_marks(tokenizer)
    last = next((token for token in reversed(prompt) if token in (opening, closing)), None)
    return last is not None and last == opening


def without_thoughts(
    tokenizer: Tokenizer, tokens: list[int], given: Sequence[int | None] = (), *, thinks: bool = False
) -> list[int]:
    """Drops `<|channel>…<channel|>` blocks, which Gemma writes before an answer (empty when thinking is off).

    Tokens that were given stay, unless the block's opening was given as well: the model may open one in a gap. With
    `thinks` a block is open from the start.
    """
    opening, closing = _thought_marks(tokenizer)
    visible, hidden, opened_by_user = [], thinks, False
    for i, token in enumerate(tokens):
        is_given = i < len(given) and given[i] is not None
        if token == opening:
            hidden, opened_by_user = True, is_given
        elif token == closing:
            hidden = False
        elif not hidden or (is_given and not opened_by_user):
            visible.append(token)
    return visible


def _thought_marks(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    vocabulary = tokenizer.get_vocab()
    return vocabulary.get(THOUGHT_OPEN), vocabulary.get(THOUGHT_CLOSE)
