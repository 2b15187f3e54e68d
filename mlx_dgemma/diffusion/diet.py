"""The vocabulary diet: between full walks, a position's scores over its heaviest groups of ids only.

After a full walk every position knows its heaviest groups and the probability outside them, its tail. A step on diet
computes scores over these groups, about a hundred ids in place of all, and takes the tail for what it last was. The
entropy that follows is a bound from above, as long as the tail has not grown: it could be spread evenly over all other
ids. A position whose tail is not small, or whose likeliest token's probability has moved, takes part in a full walk in
the same step. While the temperature falls, as it does, tails shrink.

A new winner outside the groups is seen by the next full walk at the latest; that is why a canvas only ends with one.
Shapes as in `vocabulary`; N positions on diet, K groups, G ids a group.
"""

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import DENSE_ROWS, GROUP, Prediction, Query, descend, predict
from mlx_dgemma.model import fused

TAIL = 1e-3  # probability outside the groups, above which a position takes a full walk
MOVED = 0.05  # likewise, by how much its likeliest token's probability has moved in one step
ROWS = 64  # positions whose groups are read from the table at a time


@dataclass(frozen=True)
class Shortlist:
    """What positions (B, C) that a step computes are scored over.

    Attributes:
        groups: (B, C, K); ascending.
        tail: (B, C); probability outside them, when it was last known.
        order: all B·C position numbers, those that take a full walk first.
        walks: how many take one.
    """

    groups: mx.array
    tail: mx.array
    order: mx.array
    walks: int

    @classmethod
    def of(cls, groups: mx.array, tail: mx.array, walks: np.ndarray) -> "Shortlist":
        """From what the last full walk found, and which positions (B, C) take another one, on the host."""
        flags = walks.reshape(-1)
        count = min(-(-int(flags.sum()) // DENSE_ROWS) * DENSE_ROWS, flags.size)  # few sizes of buffers
        return cls(groups, tail, mx.array(np.argsort(~flags, kind="stable")), count)


def predict_on_diet(hidden: mx.array, table: EmbeddingTable, query: Query, shortlist: Shortlist) -> Prediction:
    """`predict` for hidden states (B, C, H), of which most are scored over their shortlist only.

    A full walk answers where all positions take one, and where alternatives are wanted, which need all ids. A cutoff of
    soft embeddings has no effect on a diet: they are made from all ids that have scores.
    """
    shape, order, walks = hidden.shape[:2], shortlist.order, shortlist.walks
    if query.alternatives or walks == order.size:
        return predict(hidden, table, query)
    parts = []
    if walks:
        walking = order[:walks]
        parts.append(predict(_rows(hidden, walking), table, _own(query, walking, shape)))
    for start in range(walks, order.size, ROWS):
        own = order[start : start + ROWS]
        x = _rows(hidden, own)
        if parts:  # or the rows of all parts would be read from the table first
            x = mx.depends([x], _needed(parts[-1]))[0]
        groups, tail = _rows(shortlist.groups, own), _rows(shortlist.tail, own)
        parts.append(_predict_from(groups, tail, x, table, _own(query, own, shape)))
    return _in_order(parts, order, shape)


def _rows(x: mx.array, which: mx.array) -> mx.array:
    """These positions of x (B, C, …), as one row of a batch: (1, N, …)."""
    return x.flatten(0, 1)[which][None]


def _own(query: Query, which: mx.array, shape: tuple[int, ...]) -> Query:
    """The query of these positions."""
    temperature = query.temperature
    if isinstance(temperature, mx.array) and temperature.size > 1:
        temperature = _rows(mx.broadcast_to(temperature, (*shape, 1)), which)
    u = None if query.u is None else _rows(query.u, which)
    return replace(query, temperature=temperature, u=u, cutoff=None, rows=None)


def _needed(part: Prediction) -> list[mx.array]:
    """What all of a part's arrays are needed for."""
    return [part.entropy, part.proposal] if part.soft is None else [part.entropy, part.proposal, part.soft]


def _predict_from(
    groups: mx.array, tail: mx.array, hidden: mx.array, table: EmbeddingTable, query: Query
) -> Prediction:  # fmt: skip
    """What hidden states (1, N, H) predict from these groups (1, N, K), with this probability (1, N) outside them."""
    temperature = mx.array(query.temperature, mx.float32)
    ids = (groups[..., None] * GROUP + mx.arange(GROUP)).flatten(2).astype(mx.int32)  # (1, N, K·G)
    exists = ids < table.size  # the last group may be short
    rows = table.rows(mx.minimum(ids, table.size - 1), hidden.dtype)  # (1, N, K·G, H)
    logits = mx.where(exists, (rows @ hidden[..., None]).squeeze(-1), -mx.inf)
    place = logits.argmax(axis=-1, keepdims=True)  # the smallest id on a tie
    best = mx.take_along_axis(logits, place, axis=-1)
    maximum = fused.tempered_max(best, mx.array(-mx.inf), table.cap, temperature)
    p, weighted = (mx.where(exists, x, 0) for x in fused.tempered_exp(logits, maximum, table.cap, temperature))
    total = p.sum(axis=-1, keepdims=True)
    inside = fused.entropy(total, weighted.sum(axis=-1, keepdims=True)).squeeze(-1)
    argmax = mx.take_along_axis(ids, place, axis=-1).squeeze(-1)
    proposal, soft = argmax, None
    if query.u is not None:
        proposal = mx.take_along_axis(ids, descend(p, query.u[..., None])[0], axis=-1).squeeze(-1)
    if query.wants_soft:
        mixed = (p.astype(rows.dtype)[..., None, :] @ rows).squeeze(-2).astype(mx.float32)
        soft = fused.normalized(mixed, total, table.scale)
    return Prediction(
        argmax=argmax,
        proposal=proposal,
        entropy=with_tail(inside, tail, table.size - exists.sum(axis=-1)),
        log_p=mx.log1p(-tail) - mx.log(total).squeeze(-1),
        soft=soft,
        scored=ids.size,
        mixed=ids.size if query.wants_soft else 0,
        heaviest=(groups, tail) if query.keep else None,
    )


def _in_order(parts: list[Prediction], order: mx.array, shape: tuple[int, ...]) -> Prediction:
    """Parts (1, N, …), in which positions stand in this order, put together: (B, C, …)."""
    back = mx.argsort(order)

    def joined(arrays: list[mx.array]) -> mx.array:
        whole = mx.concatenate(arrays, axis=1)[0][back]
        return whole.reshape(*shape, *whole.shape[1:])

    softs = [part.soft for part in parts if part.soft is not None]
    heaviest = [part.heaviest for part in parts if part.heaviest is not None]
    return Prediction(
        argmax=joined([part.argmax for part in parts]),
        proposal=joined([part.proposal for part in parts]),
        entropy=joined([part.entropy for part in parts]),
        log_p=joined([part.log_p for part in parts]),
        soft=joined(softs) if softs else None,
        scored=sum(part.scored for part in parts),
        mixed=sum(part.mixed for part in parts),
        heaviest=(joined([own[0] for own in heaviest]), joined([own[1] for own in heaviest])) if heaviest else None,
    )


def with_tail(entropy: mx.array, tail: mx.array, others: mx.array) -> mx.array:
    """The largest entropy (nats) with this one inside the shortlist and at most this probability outside it.

    With probability t spread evenly over n other ids it is (1 − t)·H + h(t) + t·log n, h the binary entropy. That grows
    with t up to n / (n + exp H), where inside and outside look alike; a larger tail makes no position surer.

    Args:
        entropy: (…); H.
        tail: (…).
        others: (…); n, how many ids are not in the shortlist.
    """
    most = others / (others + mx.exp(entropy))
    t = mx.minimum(tail, most)
    outside = t * (mx.log(mx.maximum(others, 1)) - mx.log(mx.maximum(t, 1e-37)))
    return (1 - t) * (entropy - mx.log1p(-t)) + outside
