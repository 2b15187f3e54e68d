"""What a structured answer is written with: its canvases, and one denoiser pass that reads what goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.work import Work
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.choose import distributions, likeliest
from mlx_dgemma.text.endings import repeats
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.prompts import encode
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.transcript import Committed, Transcript

LIKELY = 256  # tokens that are tried, likeliest first, before single characters
CHARACTERS = '"}],:{[-0123456789.tfn abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'


@dataclass(frozen=True)
class Canvas:
    """A canvas that was denoised: ids, and log-probabilities and entropies in the last step, nats."""

    tokens: list[int]
    log_p: list[float]
    entropy: list[float]


class Spelling:
    """Texts to token ids and back."""

    def __init__(self, run: Run):
        assert run.tokenizer is not None  # `prepare` refuses a form without one
        self.tokenizer, self.stops = run.tokenizer, run.settings.stops
        self.pad = run.tokenizer.pad_token_id
        unknown = run.tokenizer.unk_token_id
        self.can_escape = unknown is None or unknown not in self.tokenizer.encode("\\", False)
        singles = (self.tokenizer.encode(character, False) for character in CHARACTERS)
        self.singles = [ids[0] for ids in singles if len(ids) == 1 and ids[0] != unknown]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, in which no name is a control token's."""
        return encode(self.tokenizer, text, "the answer", plain=True) if text else []

    def of(self, before: Sequence[int], token: int) -> str:
        """What a token adds to the text of those before it."""
        return self._added(before, [token])

    def behind(self, given: Sequence[int], tokens: Sequence[int]) -> tuple[str, bool]:
        """What a canvas says behind its given tokens, up to a stop token; whether it ends there."""
        free = list(tokens[len(given) :])
        end = next((i for i, token in enumerate(free) if token in self.stops), None)
        text = self._added(given, free[:end])
        ended = end is not None or not text
        return (text if ended else text.rstrip("\ufffd")), ended

    def _added(self, before: Sequence[int], ids: Sequence[int]) -> str:
        whole = self.tokenizer.decode([*before, *ids], skip_special_tokens=True)
        known = self.tokenizer.decode(list(before), skip_special_tokens=True)
        return whole[len(known) :] if whole.startswith(known) else self.tokenizer.decode(list(ids), True)


class Answer:
    """The text of an answer so far: the beginning that is settled, in the prefix, and the rest on the canvas."""

    def __init__(self, run: Run, cache: PrefixCache, transcript: Transcript, spelling: Spelling):
        self.run, self.cache, self.transcript, self.spelling = run, cache, transcript, spelling
        self.length = run.model.config.canvas_length
        self.text, self.settled = "", 0  # and how many of its characters are in the prefix
        self.ids: list[int] = []  # of the rest
        self.log_p: list[float] = []
        self.entropy: list[float] = []
        self.steps, self.work = 0, Work()  # since the last canvas was committed
        self.is_over = self._is_hopeless = False
        self.is_looping = False  # whether a canvas said one thing from end to end, or what the last one said
        self._previous: list[int] = []

    @property
    def canvases(self) -> int:
        return self.transcript.canvases

    @property
    def is_long(self) -> bool:
        """Whether so much of the canvas is written that the next value should get one of its own."""
        return len(self.ids) > self.length // 2

    @property
    def is_spent(self) -> bool:
        """Whether no token can follow."""
        most = self.run.model.config.max_position_embeddings
        needed = self.length + (len(self.ids) if self.is_long else 0)
        is_full = self.transcript.position + len(self.ids) >= self.run.settings.max_new_tokens
        return is_full or self.cache.length + needed > most or self._is_hopeless

    def is_late(self, reserve: int) -> bool:
        """Whether the last tokens of the budget are used, at most `reserve`."""
        budget = self.run.settings.max_new_tokens
        return self.transcript.position + len(self.ids) + min(reserve, budget // 4) >= budget

    def give_up(self) -> None:
        """Nothing goes on with it."""
        self._is_hopeless = True

    def clamped(self, *, is_open: bool) -> list[int]:
        """Token ids that a canvas begins with; `is_open` if a space at the end is part of a value."""
        text = self.text[self.settled :]
        return self.ids if is_open else self.spelling.ids(text.rstrip(" "))

    def unsettled(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of what longer answers add to the prefix."""
        return [self.spelling.ids(text[self.settled :])[: self.length] for text in texts]

    def become(self, text: str, draft: Canvas | None = None) -> None:
        """Becomes this text, if it goes on with what there is and the settled part is the same."""
        if goes_on(text, self.text) and text.startswith(self.text[: self.settled]):
            self._set(text, draft)

    def cut(self, end: int) -> bool:
        """Goes back to its first characters, if the rest is not settled."""
        if end < self.settled:
            return False
        self._set(self.text[:end], None)
        return True

    def _set(self, text: str, draft: Canvas | None) -> None:
        ids = self.spelling.ids(text[self.settled :])
        known = self.ids, self.log_p, self.entropy
        self.text, self.ids = text, ids
        self.log_p, self.entropy = self._about(ids, *known, draft)

    @staticmethod
    def _about(
        ids: list[int], before: list[int], log_p: list[float], entropy: list[float], draft: Canvas | None
    ) -> tuple[list[float], list[float]]:
        """What is known of tokens: 0 of those that were not denoised."""
        made_p, made_entropy = [0.0] * len(ids), [0.0] * len(ids)
        for i, token in enumerate(ids):
            if i < len(before) and before[i] == token:
                made_p[i], made_entropy[i] = log_p[i], entropy[i]
            elif draft is not None and i < len(draft.tokens) and draft.tokens[i] == token:
                made_p[i], made_entropy[i] = draft.log_p[i], draft.entropy[i]
        return made_p, made_entropy

    def commit(self, characters: int, *, is_done: bool = False, is_cut: bool = False) -> Iterator[TextCanvas]:
        """Settles the first characters, canvas by canvas; the last ones if the answer `is_done`, or `is_cut` there."""
        ids = self.spelling.ids(self.text[self.settled : characters])
        log_p, entropy = self._about(ids, self.ids, self.log_p, self.entropy, None)
        if is_done and self.spelling.stops:
            ids, log_p, entropy = [*ids, self.spelling.stops[0]], [*log_p, 0.0], [*entropy, 0.0]
        starts = range(0, max(len(ids), 1), self.length)
        for start in starts:
            part = slice(start, start + self.length)
            is_last = (is_done or is_cut) and start == starts[-1]
            canvas = self._add(ids[part], log_p[part], entropy[part], is_last=is_last)
            self.is_over = canvas.finish_reason is not None
            with self.transcript.clock.paused():
                yield canvas
            if self.is_over:
                return
        self.settled = characters
        self._set(self.text, None)

    def _add(self, ids: list[int], log_p: list[float], entropy: list[float], *, is_last: bool) -> TextCanvas:
        """A canvas with these tokens, as far as they go."""
        filler = self.spelling.pad if self.spelling.pad is not None else 0
        spare = self.length - len(ids)
        steps, work, self.steps, self.work = self.steps if ids else 0, self.work, 0, Work()
        nothing = [0.0] * spare
        committed = Committed([*ids, *[filler] * spare], steps, [*log_p, *nothing], [*entropy, *nothing], work=work)
        self.is_looping = self.is_looping or repeats(ids, self._previous)
        self._previous = ids
        canvas = self.transcript.add(committed, is_last=is_last, end=len(ids), may_repeat=True)
        if canvas.finish_reason is None:
            prefill(self.run.model, mx.array([ids]), self.cache)
        return canvas


def goes_on(text: str, before: str) -> bool:
    """Whether a text is more than the one before it; a space that ended a number there may have become something."""
    return text != before and len(text) >= len(before)


def likely_option(run: Run, cache: PrefixCache, options: Sequence[Sequence[int]]) -> int:
    """Which of some texts the model is surest of, token ids each behind the prefix; the first if none can be told."""
    shortest = min(map(len, options))
    if len({tuple(ids[:shortest]) for ids in options}) == 1:
        return 0
    return likeliest(run, cache, options)


def likely_tokens(run: Run, cache: PrefixCache, given: Sequence[int], spelling: Spelling) -> list[int]:
    """The tokens that may come behind given ones, likeliest first; then single characters."""
    length, vocab_size = run.model.config.canvas_length, run.model.config.vocab_size
    noise = SeededNoise(run.request.seed, vocab_size).tokens((1, length))
    canvas = mx.concatenate([mx.array([list(given)], dtype=noise.dtype), noise[:, len(given) :]], axis=1)
    p = distributions(run.model, cache, canvas, [(0, len(given))])[0]
    best = np.argsort(-p, kind="stable")[:LIKELY].tolist()
    singles = sorted((token for token in spelling.singles if token < vocab_size), key=lambda token: -p[token])
    return [*best, *singles]
