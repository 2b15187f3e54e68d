"""Committed canvases to text: cut at the end, decoded without half characters and thoughts."""

import time
from collections.abc import Sequence

import mlx.core as mx

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.text.events import Stats, TextCanvas
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.template import given_end

THOUGHT_OPEN, THOUGHT_CLOSE = "<|channel>", "<channel|>"


class Transcript:
    """The text of one run, canvas by canvas; its clock starts when it is made, after a prefill of `prompt_seconds`."""

    def __init__(self, run: Run, prompt_seconds: float):
        self.run, self.prompt_seconds = run, prompt_seconds
        self.tokens: list[int] = []
        self._steps = self._canvases = 0
        self._given_end = given_end(run.given, run.settings.eos_token_id)
        self._decoder = TextDecoder(run.tokenizer, run.given)
        self._began = time.perf_counter()

    def add(self, canvas: list[int], steps: int, *, is_last: bool) -> TextCanvas:
        """Takes a committed canvas; `is_last` if none can follow whatever it holds."""
        new, stopped = cut(canvas, self.run.settings, len(self.tokens), self._given_end)
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

    def __init__(self, tokenizer: Tokenizer | None, given: Sequence[int | None] = ()):
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


def without_thoughts(tokenizer: Tokenizer, tokens: list[int], given: Sequence[int | None] = ()) -> list[int]:
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
