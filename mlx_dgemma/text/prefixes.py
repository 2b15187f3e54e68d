"""Prefixes that are remembered, so that a new turn encodes only what is new.

An entry is a conversation: the ids that were encoded, the full layers' keys and values of all of them, and copies of
the sliding windows at the ends of turns. A full layer can be cut anywhere; a window has dropped what it would need, so
a prompt goes on from the last turn's end that it shares, and nothing is ever sliced out of a window.

Ids are integers that name what was read: of tokens, and of whatever else takes a position (for an image, a hash).
"""

import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.denoiser import Pause, finished, pauses
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import memory
from mlx_dgemma.model.cache import Held, PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import Sight, segments

MOST = 2 << 30  # bytes, of a budget that was not given
SHORT = 1024  # tokens: what is shorter, and was never used again, goes first
ENDS = 3  # turn ends that an entry keeps: the system's, and the last two
TURN, RESULT = "<|turn>", "<tool_response|>"


@dataclass
class Entry:
    """A conversation.

    Attributes:
        ids: what was encoded.
        full: of every layer, what the full ones hold of all the ids; None for the others.
        ends: by length in tokens, what the sliding layers held there; None for the others.
        used: when it was last used, as a counter.
        hits: how often.
    """

    ids: tuple[int, ...]
    full: list[Held | None]
    ends: dict[int, list[Held | None]]
    used: int = 0
    hits: int = 0
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        held = [*self.full, *(own for end in self.ends.values() for own in end)]
        self.nbytes = sum(array.nbytes for own in held if own for array in own[:2] if array is not None)

    def end_before(self, ids: Sequence[int]) -> int:
        """The last turn's end in what this entry and some ids share, 0 if there is none."""
        shared = common(self.ids, ids)
        return max((end for end in self.ends if end <= shared), default=0)


class Shelf(Protocol):
    """Where entries are kept beyond memory, see `kept.PrefixFolder`."""

    def find(self, ids: Sequence[int], better_than: int) -> Entry | None:
        """An entry that shares more of some ids, up to a turn's end."""

    def save(self, entries: Sequence[Entry]) -> None:
        """Keeps what is new."""


class PrefixStore:
    """Entries of one model, up to a budget; the least recently used goes first."""

    def __init__(self, budget: int | None = None, shelf: Shelf | None = None):
        """What remembers prompts.

        Args:
            budget: bytes; by default a quarter of what the weights leave of the machine's memory, at most 2 GB.
            shelf: where `save` keeps entries, and where they are looked for.
        """
        self._shelf = shelf
        if budget is not None and (type(budget) is not int or budget < 0):
            raise DGemmaError(f"the budget of a prefix store is in bytes, 0 or more; got {budget!r}")
        self.budget = budget
        self.entries: list[Entry] = []
        self._model: DiffusionGemma | None = None
        self._lock = threading.Lock()
        self._clock = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.nbytes for entry in self.entries)

    def prefix(self, model: DiffusionGemma, ids: Sequence[int], ends: Collection[int]) -> tuple[PrefixCache, int]:
        """A cache that holds these ids, and how many of them were remembered.

        Args:
            model: always the same one.
            ids: of the prompt.
            ends: lengths at which a later prompt may go on, in tokens.

        Raises:
            DGemmaError: another model than before.
        """
        return finished(self.encode(model, ids, ends))

    def encode(
        self, model: DiffusionGemma, ids: Sequence[int], ends: Collection[int],
        read: Callable[[mx.array], None] | None = None, sights: Mapping[int, Sight] | None = None,
    ) -> Generator[Pause, None, tuple[PrefixCache, int]]:  # fmt: skip
        """`prefix`, which gives way to others between chunks; negative ids are those of `sights`.

        `read` gets the hidden states behind the last end, chunk by chunk, (1, T, H): those of the last token always.
        """
        cache, kept = self._restored(model, ids if read is None else ids[:-1])
        cached = cache.length
        for end in sorted({*ends, len(ids)}):
            if end > cache.length:
                part, own = ids[cache.length : end], read if end == len(ids) else None
                yield from pauses(segments(model, part, sights or {}, cache, read=own))
            if end == cache.length and end in ends:
                kept[end] = _windows(cache)
        self._keep(Entry(tuple(ids), _full(cache), _last(kept)), model)
        return cache, cached

    def clear(self) -> None:
        """Forgets the entries."""
        with self._lock:
            self.entries = []

    def save(self) -> None:
        """Keeps the entries beyond memory.

        Raises:
            DGemmaError: they cannot be written.
        """
        if self._shelf is not None:
            self._shelf.save(self.entries)

    def _restored(self, model: DiffusionGemma, ids: Sequence[int]) -> tuple[PrefixCache, dict[int, list[Held | None]]]:
        """The longest remembered beginning of some ids, and the turn ends in it."""
        with self._lock:
            if self._model is not None and self._model is not model:
                raise DGemmaError("a prefix store belongs to the model that it was first used with; make another one")
            self._model = model
            found = max(self.entries, key=lambda entry: entry.end_before(ids), default=None)
            length = 0 if found is None else found.end_before(ids)
            if self._shelf is not None and (better := self._shelf.find(ids, length)) is not None:
                found, length = better, better.end_before(ids)
            if model.ranks is not None and len(set(model.ranks.numbers(length))) > 1:
                length = 0  # ranks that remember different prompts read all of this one
            if found is None or not length:
                return model.make_cache(), {}
            self._clock += 1
            found.used, found.hits = self._clock, found.hits + 1
            held = [full or window for full, window in zip(found.full, found.ends[length], strict=True)]
            kept = {end: windows for end, windows in found.ends.items() if end <= length}
        windows = [layer.window for layer in model.config.layers]
        return PrefixCache.of(windows, [own for own in held if own], length), kept

    def _keep(self, entry: Entry, model: DiffusionGemma) -> None:
        """Adds an entry, in the place of those that it goes on from; forgets what the budget has no room for."""
        with self._lock:
            self._clock += 1
            entry.used = self._clock
            earlier = [own for own in self.entries if own.ends and max(own.ends) == own.end_before(entry.ids)]
            entry.hits = sum(own.hits for own in earlier)
            self.entries = [own for own in self.entries if all(own is not other for other in earlier)]
            self.entries.append(entry)
            self.entries.sort(key=lambda own: (own.hits > 0 or len(own.ids) >= SHORT, own.used))
            budget = default_budget(model) if self.budget is None else self.budget
            while self.entries and self.nbytes > budget:
                del self.entries[0]


def turn_ends(tokenizer: Tokenizer | None, ids: Sequence[int]) -> set[int]:
    """Lengths of a prompt at which a later one may go on.

    Where the model's turn is opened, as histories write it otherwise than the model did; behind the first turn, which
    conversations may share; behind results of calls; or, without turns, at the end.
    """
    names = {} if tokenizer is None else tokenizer.get_vocab()
    opens = {token for name, token in names.items() if name.startswith(TURN)}
    turns = [at for at, token in enumerate(ids) if token in opens]
    if not turns:
        return {len(ids)}
    ends = {at for at in (turns[-1], *turns[1:2]) if at}
    return ends | {len(ids)} if names.get(RESULT) in ids[turns[-1] :] else ends


def default_budget(model: DiffusionGemma) -> int:
    """Bytes: a quarter of what the weights leave of the memory that a run may use, at most 2 GB."""
    return max(0, min(MOST, (memory.total() - model.nbytes) // 4))


def common(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two prompts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))


def _full(cache: PrefixCache) -> list[Held | None]:
    return [own if layer.window is None else None for layer, own in zip(cache.layers, cache.held(), strict=True)]


def _windows(cache: PrefixCache) -> list[Held | None]:
    """Copies of what the sliding layers see."""
    copies: list[Held | None] = []
    for layer, (keys, values, length) in zip(cache.layers, cache.held(), strict=True):
        if layer.window is None or keys is None or values is None:
            copies.append(None)
        else:
            copies.append((mx.contiguous(keys[:, :, :length]), mx.contiguous(values[:, :, :length]), length))
    memory.finish([array for own in copies if own for array in own[:2] if array is not None])
    return copies


def _last(ends: dict[int, list[Held | None]]) -> dict[int, list[Held | None]]:
    """The first and the last ones."""
    lengths = sorted(ends)
    return {end: ends[end] for end in {*lengths[:1], *lengths[1 - ENDS :]}}
