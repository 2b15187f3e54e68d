"""Forward passes: what a canvas waits for, and who answers.

A generator that writes (`canvas.refine` and what is built on it) yields, beside its events, the places where it gives
way to others: a `Pause`, and among these `Forward`, the pass without which it cannot go on. Whoever drives the
generator answers it: `alone` at once, `together` for several canvases as rows of one pass. So all that a row does
between two passes is its own, whatever the others do: settings, noise, steering, steps left.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Generic, Protocol, TypeVar, cast

import mlx.core as mx

from mlx_dgemma.diffusion.diet import predict_on_diet
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import BLOCK, Prediction, Query, predict
from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.cache import Buffers, PrefixCache, Slots
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma

Begun = TypeVar("Begun")  # a forward pass whose graph is built
Event = TypeVar("Event")
Result = TypeVar("Result")
LANES_FROM = 4  # rows, from which a CPU computes them in two halves at a time


class Denoiser(Protocol[Begun]):
    """What proposes tokens: the model over a prefix, or a stand-in of a test."""

    def begin(self, canvas: mx.array, soft: mx.array | None, slots: Slots | None = None) -> Begun:
        """The forward pass over ids (B, C) and the previous soft embeddings, as a graph; nothing is computed yet.

        With `slots`, over these positions of a canvas all of which an earlier pass has seen: (B, R).
        """

    def finish(self, begun: Begun, query: Query) -> Prediction:
        """Answers a query about a forward pass that was begun."""

    def cancel(self) -> None:
        """The last forward pass that was begun will not be finished; nothing to do if it was."""


class ModelDenoiser:
    """The model over a prefix, asked through the vocabulary stage, so that whole logits are never made."""

    def __init__(self, model: DiffusionGemma, cache: PrefixCache):
        self.model, self.cache = model, cache
        embedding = model.model.decoder.embed_tokens
        self.table = EmbeddingTable(embedding, model.embedding_scale, model.config.final_logit_softcapping)
        self._before: list[Buffers] = []

    def begin(self, canvas: mx.array, soft: mx.array | None, slots: Slots | None = None) -> mx.array:
        self._before = self.cache.snapshot()
        return self.hidden(canvas, [self.cache], soft, slots)

    def finish(self, begun: mx.array, query: Query) -> Prediction:
        self._before = []  # or the prefix, held twice, would be copied
        return self.answer(begun, query)

    def hidden(
        self, canvas: mx.array, caches: Sequence[PrefixCache], soft: mx.array | None, slots: Slots | None = None
    ) -> mx.array:
        """The graph of a pass whose rows may have prefixes of their own: what `answer` makes a prediction of."""
        return self.model.denoise_hidden(canvas, caches, soft, slots)

    def answer(self, hidden: mx.array, query: Query, block: int | None = None) -> Prediction:
        """What that pass predicts, reading so many ids of the vocabulary at a time."""
        if query.shortlist is not None:
            return predict_on_diet(hidden, self.table, query, query.shortlist)
        return predict(hidden, self.table, query, block)

    def cancel(self) -> None:
        if self._before:
            self.cache.restore(self._before)
        self._before = []


class Pause:
    """Between two units of a text's work: others may do some of theirs before it goes on."""


class Forward(Pause, Generic[Begun]):
    """A pass that a canvas yields twice: when it is known of what, and, with a query, when it has to be answered.

    The first time it may be begun, so that its graph is built while an earlier one is computed.
    """

    def __init__(self, denoiser: Denoiser[Begun], canvas: mx.array, soft: mx.array | None, slots: Slots | None = None):
        self.denoiser, self.canvas, self.soft, self.slots = denoiser, canvas, soft, slots
        self.query: Query | None = None
        self.prediction: Prediction | None = None
        self._begun: list[Begun] = []

    @property
    def is_begun(self) -> bool:
        return bool(self._begun)

    def advance(self) -> None:
        """Begins the pass, and answers its query if there is one."""
        if not self._begun:
            self._begun = [self.denoiser.begin(self.canvas, self.soft, self.slots)]
        if self.query is not None:
            self.prediction = self.denoiser.finish(self._begun[0], self.query)

    def cancel(self) -> None:
        """It need not be finished; nothing to do if it was."""
        if self._begun and self.prediction is None:
            self.denoiser.cancel()
        self._begun = []


def alone(events: Generator[Pause | Event, None, None]) -> Generator[Event, None, None]:
    """The events of a generator that shares its passes with no other."""
    with closing(events):
        for event in events:
            if isinstance(event, Forward):
                event.advance()
            elif not isinstance(event, Pause):
                yield event


def pauses(work: Iterator[None]) -> Generator[Pause, None, None]:
    """Work of the model that is done in parts, with a pause behind each."""
    for _ in work:
        yield Pause()


def finished(work: Generator[Pause, None, Result]) -> Result:
    """The result of work that gives way to others, where there are none."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast(Result, end.value)


def together(forwards: Sequence[Forward[mx.array]]) -> None:
    """Answers the queries of several passes of one model, a row each, and begins to compute them.

    The rows' prefixes may differ in length: attention is computed row by row, all else for all rows at once. Those with
    a cutoff of their soft embeddings, on a vocabulary diet, and those of some positions only, are answered one by one,
    as which rows are dense and which positions are meant is told for whole passes.
    """
    alike: dict[int, list[Forward[mx.array]]] = {}  # by how many positions are present
    for own in forwards:
        if _can_share(own):
            alike.setdefault(own.canvas.shape[1], []).append(own)
        else:
            own.advance()
    for shared in alike.values():
        _answer_all(shared)


def _answer_all(shared: Sequence[Forward[mx.array]]) -> None:
    """Answers passes over as many positions each, and begins to compute them."""
    if len(shared) == 1:
        shared[0].advance()
        return
    # exchanges between ranks have one order, so that these use one lane
    is_alone = cast(ModelDenoiser, shared[0].denoiser).model.ranks is None
    lanes = cpu.lanes() if len(shared) >= LANES_FROM and is_alone else cpu.lanes()[:1]
    share = -(-len(shared) // len(lanes))
    for lane, start in zip(lanes, range(0, len(shared), share), strict=False):
        with mx.stream(lane):
            _answer(shared[start : start + share])
    memory.start([array for own in shared for array in _arrays(own.prediction)], rows=len(shared))


def _can_share(own: Forward[mx.array]) -> bool:
    """Whether a pass is over a whole canvas and asks for all ids of all positions."""
    query = own.query
    return query is not None and query.cutoff is None and not query.keep and own.slots is None


def _answer(forwards: Sequence[Forward[mx.array]]) -> None:
    """Answers them in one pass."""
    for own in forwards:
        own.cancel()  # one that was begun alone
    denoisers = [cast(ModelDenoiser, own.denoiser) for own in forwards]
    first = denoisers[0]
    softs = [own.soft for own in forwards]
    like = next((soft for soft in softs if soft is not None), None)
    soft = None if like is None else mx.concatenate([mx.zeros_like(like) if own is None else own for own in softs])
    canvas = mx.concatenate([own.canvas for own in forwards])
    hidden = first.hidden(canvas, [own.cache for own in denoisers], soft)
    queries = [own.query for own in forwards if own.query is not None]
    answer = first.answer(hidden, _joined(queries, canvas.shape), max(1, BLOCK // len(forwards)))
    for i, (own, query) in enumerate(zip(forwards, queries, strict=True)):
        own.prediction = _row(answer, i, query)


def _joined(queries: Sequence[Query], shape: tuple[int, ...]) -> Query:
    """One query for rows that each asked one."""
    us = [own.u for own in queries]
    nothing = mx.zeros((1, *shape[1:]))
    u = None if all(own is None for own in us) else mx.concatenate([nothing if own is None else own for own in us])
    temperatures = mx.array([own.temperature for own in queries], mx.float32)[:, None, None]
    wants_soft, alternatives = any(own.wants_soft for own in queries), max(own.alternatives for own in queries)
    return Query(temperatures, u, wants_soft, alternatives=alternatives)


def _row(answer: Prediction, i: int, query: Query) -> Prediction:
    """What one of the rows asked for, (1, C) and (1, C, H)."""
    own = slice(i, i + 1)
    argmax, likely = answer.argmax[own], answer.alternatives
    if likely is not None:
        likely = (likely[0][own, :, : query.alternatives], likely[1][own, :, : query.alternatives])
    return replace(
        answer,
        argmax=argmax,
        proposal=argmax if query.u is None else answer.proposal[own],
        entropy=answer.entropy[own],
        log_p=answer.log_p[own],
        soft=answer.soft[own] if query.wants_soft and answer.soft is not None else None,
        alternatives=likely if query.alternatives else None,
    )


def _arrays(prediction: Prediction | None) -> list[mx.array]:
    assert prediction is not None
    found = [prediction.argmax, prediction.proposal, prediction.entropy, prediction.log_p]
    found += prediction.alternatives or ()
    return found if prediction.soft is None else [*found, prediction.soft]
