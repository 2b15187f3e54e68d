"""A denoiser that computes this process' positions of a canvas and learns what the others' predict; see `model.share`.

Soft embeddings stay with the rank that owns their position: elsewhere they are zeros, which nobody reads.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.denoiser import Event, Forward, ModelDenoiser, Pause
from mlx_dgemma.diffusion.diet import Shortlist
from mlx_dgemma.diffusion.rows import RowsDenoiser
from mlx_dgemma.diffusion.vocabulary import GROUP, Prediction, Query, SoftRows, mixed_ids
from mlx_dgemma.model import host
from mlx_dgemma.model.cache import PrefixCache, Slots
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.ranks import Ranks
from mlx_dgemma.model.share import Part, Share
from mlx_dgemma.model.tensor import TensorModel


def make_denoiser(model: DiffusionGemma, cache: PrefixCache) -> ModelDenoiser:
    """The model over a prefix, alone or with those that share its passes."""
    if isinstance(model, TensorModel):
        return RowsDenoiser(model, cache)
    return ModelDenoiser(model, cache) if model.share is None else SharedDenoiser(model, cache, model.share)


@contextmanager
def unshared(model: DiffusionGemma) -> Iterator[None]:
    """Meanwhile a model's passes are this process' alone."""
    share, model.share = model.share, None
    try:
        yield
    finally:
        model.share = share


def in_step(events: Generator[Pause | Event, None, None], ranks: Ranks) -> Generator[Pause | Event, None, None]:
    """A generator on every rank, of which none goes on to work that all share unless all do; closed on one, it ends on
    the others by an error."""
    with closing(events):
        for event in events:
            if isinstance(event, Pause) and not (isinstance(event, Forward) and event.query is None):
                ranks.go_on()
            try:
                yield event
            except GeneratorExit:
                ranks.stop()
                raise


class SharedDenoiser(ModelDenoiser):
    """One rank's denoiser; all ranks ask theirs the same, and each gets the whole answer."""

    def __init__(self, model: DiffusionGemma, cache: PrefixCache, share: Share):
        super().__init__(model, cache)
        self.share = share
        self._pass: tuple[Part, int] | None = None  # the last one that was begun: own part, and how many positions

    def hidden(
        self, canvas: mx.array, caches: Sequence[PrefixCache], soft: mx.array | None, slots: Slots | None = None
    ) -> mx.array:
        at = range(canvas.shape[1]) if slots is None else host.ints(slots.at)
        part = self.share.positions(at)
        self._pass = part, len(at)
        return self.model.denoise_hidden(canvas, caches, soft, slots, part)

    def answer(self, hidden: mx.array, query: Query, block: int | None = None) -> Prediction:
        assert self._pass is not None  # what is answered was begun
        part, size = self._pass
        own = super().answer(hidden, _own(query, part, size), block)
        whole = _told_all(own, part)
        soft = None
        if own.soft is not None:
            batch, _, width = own.soft.shape
            soft = mx.zeros((batch, size, width), own.soft.dtype)
            soft[:, part.own] = own.soft
        scored, mixed = _ids(query, whole.argmax.size, self.table.size)
        return replace(whole, soft=soft, scored=scored, mixed=mixed)


def _own(query: Query, part: Part, size: int) -> Query:
    """What a query asks of this rank's positions, of so many."""
    at = part.own
    rows, short = query.rows, query.shortlist
    if rows is not None:
        order, dense = _renumbered(rows.order, rows.dense, part, size)
        rows = SoftRows(order, dense)
    if short is not None:
        order, walks = _renumbered(short.order, short.walks, part, size)
        short = Shortlist(short.groups[:, at], short.tail[:, at], order, walks)
    return replace(query, u=None if query.u is None else query.u[:, at], rows=rows, shortlist=short)


def _renumbered(order: mx.array, first: int, part: Part, size: int) -> tuple[mx.array, int]:
    """An order of all positions of a batch as one of this rank's, and how many of the first ones are its own."""
    old = np.array(order)
    number = np.full(size, -1)
    number[np.array(part.own)] = np.arange(part.own.size)
    new = number[old % size] + old // size * part.own.size
    is_own = number[old % size] >= 0
    return mx.array(new[is_own]), int(is_own[:first].sum())


def _told_all(own: Prediction, part: Part) -> Prediction:
    """Every rank's prediction but for the soft embeddings, in one exchange of whole numbers."""
    likely, heaviest = own.alternatives, own.heaviest
    integers = [own.argmax, own.proposal, *([] if own.groups is None else [own.groups])]
    numbers = [own.entropy, own.log_p]
    wide = []
    if likely is not None:
        wide += [likely[0], likely[1]]
    if heaviest is not None:
        wide += [heaviest[0]]
        numbers += [heaviest[1]]
    columns = [array[..., None] for array in (*integers, *numbers)] + wide
    packed = mx.concatenate([_as_bits(column) for column in columns], axis=-1)
    ends = np.cumsum([column.shape[-1] for column in columns])[:-1].tolist()
    parts = mx.split(part.columns(packed), ends, axis=-1)
    told = [_as(column.dtype, bits) for column, bits in zip(columns, parts, strict=True)]
    narrow = [array.squeeze(-1) for array in told[: len(integers) + len(numbers)]]
    rest = told[len(narrow) :]
    return replace(
        own,
        argmax=narrow[0],
        proposal=narrow[1],
        groups=None if own.groups is None else narrow[2],
        entropy=narrow[len(integers)],
        log_p=narrow[len(integers) + 1],
        alternatives=None if likely is None else (rest[0], rest[1]),
        heaviest=None if heaviest is None else (rest[-1], narrow[-1]),
    )


def _as_bits(x: mx.array) -> mx.array:
    """Floats as integers of the same bits; integers, which are small, as 32 bits."""
    return x.view(mx.int32) if x.dtype == mx.float32 else x.astype(mx.int32)


def _as(dtype: mx.Dtype, bits: mx.array) -> mx.array:
    return bits.view(mx.float32) if dtype == mx.float32 else bits.astype(dtype)


def _ids(query: Query, positions: int, vocabulary: int) -> tuple[int, int]:
    """Positions × ids in scores and in soft embeddings, of all ranks."""
    short = query.shortlist
    if short is None or query.alternatives or short.walks == short.order.size:
        return positions * vocabulary, mixed_ids(query, positions, vocabulary)
    scored = short.walks * vocabulary + (positions - short.walks) * short.groups.shape[-1] * GROUP
    return scored, scored if query.wants_soft else 0
