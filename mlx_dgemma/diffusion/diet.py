"""The vocabulary diet: between full walks, a position's scores over its heaviest groups of ids only.

After a full walk every position knows its heaviest groups and the probability outside them, its tail. A step on diet
computes scores over these groups, about a hundred ids in place of all, and takes the tail for what it last was. The
entropy that follows is a bound from above: the tail could be spread evenly over all other ids. A position whose tail is
not small, or whose likeliest token's probability has moved, takes part in a full walk in the same step.

A new winner outside the groups is seen by the next full walk at the latest; that is why a canvas only ends with one.
Shapes as in `vocabulary`; N positions on diet, K groups, G ids a group.
"""

import math
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
    """`predict` for hidden states (B, C, H), of which most are scored over their shortlist only."""
    shape = hidden.shape[:2]
    walking, fasting = shortlist.order[: shortlist.walks], shortlist.order[shortlist.walks :]
    parts = []
    if walking.size:
        parts.append(predict(_rows(hidden, walking), table, _own(query, walking, shape)))
    if fasting.size:
        parts.append(_fast(_rows(hidden, fasting), table, _own(query, fasting, shape), shortlist, fasting))
    back = mx.argsort(shortlist.order)

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


def _rows(x: mx.array, which: mx.array) -> mx.array:
    """These positions of x (B, C, …), as one row of a batch: (1, N, …)."""
    return x.flatten(0, 1)[which][None]


def _own(query: Query, which: mx.array, shape: tuple[int, ...]) -> Query:
    """The query of these positions."""
    temperature = query.temperature
    if isinstance(temperature, mx.array) and temperature.size > 1:
        temperature = _rows(mx.broadcast_to(temperature, (*shape, 1)), which)
    return replace(query, temperature=temperature, u=None if query.u is None else _rows(query.u, which))


def _fast(
    hidden: mx.array, table: EmbeddingTable, query: Query, shortlist: Shortlist, which: mx.array
) -> Prediction:  # fmt: skip
    """Scores of positions (1, N, H) over their shortlist."""
    groups, tail = _rows(shortlist.groups, which), _rows(shortlist.tail, which)
    parts: list[tuple[mx.array, ...]] = []
    for start in range(0, hidden.shape[1], ROWS):
        own = slice(start, start + ROWS)
        temperature = query.temperature
        if isinstance(temperature, mx.array) and temperature.size > 1:
            temperature = temperature[:, own]
        u = None if query.u is None else query.u[:, own]
        x = hidden[:, own]
        if parts:  # or the rows of all parts would be read from the table first
            x = mx.depends([x], [parts[-1][0]])[0]
        part = replace(query, temperature=temperature, u=u)
        parts.append(_scored(x, table, part, groups[:, own], tail[:, own]))
    argmax, proposal, entropy, log_p, *soft = (mx.concatenate(list(own), axis=1) for own in zip(*parts, strict=True))
    ids = argmax.size * groups.shape[-1] * GROUP
    mixed = ids if query.wants_soft else 0
    heaviest = (groups, tail) if query.keep else None
    return Prediction(
        argmax, proposal, entropy, log_p, soft[0] if soft else None, scored=ids, mixed=mixed, heaviest=heaviest
    )


def _scored(
    x: mx.array, table: EmbeddingTable, query: Query, groups: mx.array, tail: mx.array
) -> tuple[mx.array, ...]:  # fmt: skip
    """Argmax, proposal, entropy, log-probability (1, N), and soft embeddings (1, N, H) if they are wanted."""
    temperature, size = mx.array(query.temperature, mx.float32), mx.array(table.size, mx.int32)
    ids = (groups[..., None] * GROUP + mx.arange(GROUP)).flatten(2).astype(mx.int32)  # (1, N, K·G)
    rows = table.rows(mx.minimum(ids, table.size - 1), x.dtype)  # (1, N, K·G, H)
    logits = (rows @ x[..., None]).squeeze(-1)
    exists = ids < size
    best = mx.where(exists, logits.astype(mx.float32), -mx.inf).max(axis=-1, keepdims=True)
    maximum = fused.tempered_max(best, mx.array(-mx.inf), table.cap, temperature)
    p, weighted = fused.tempered_exp(logits, maximum, table.cap, temperature)
    p, weighted = mx.where(exists, p, 0), mx.where(exists, weighted, 0)
    total = p.sum(axis=-1, keepdims=True)
    inside = fused.entropy(total, weighted.sum(axis=-1, keepdims=True)).squeeze(-1)
    entropy = with_tail(inside, tail, table.size - groups.shape[-1] * GROUP)
    log_p = mx.log1p(-tail) - mx.log(total).squeeze(-1)
    argmax = mx.take_along_axis(ids, p.argmax(axis=-1, keepdims=True), axis=-1).squeeze(-1)
    proposal = argmax
    if query.u is not None:
        index, _ = descend(p, query.u[..., None])
        proposal = mx.take_along_axis(ids, index, axis=-1).squeeze(-1)
    if not query.wants_soft:
        return argmax, proposal, entropy, log_p
    mixed = (p.astype(rows.dtype)[..., None, :] @ rows).squeeze(-2).astype(mx.float32)
    return argmax, proposal, entropy, log_p, fused.normalized(mixed, total, table.scale)


def with_tail(entropy: mx.array, tail: mx.array, others: int) -> mx.array:
    """The largest entropy (nats) that goes with one inside the shortlist and a tail spread over so many other ids."""
    if others <= 0:
        return entropy
    outside = mx.where(tail > 0, tail * (math.log(others) - mx.log(mx.maximum(tail, 1e-37))), 0)
    return (1 - tail) * (entropy - mx.log1p(-tail)) + outside
