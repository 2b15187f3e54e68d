"""The vocabulary stage: from hidden states to argmax, proposal, entropy and soft embeddings in one walk over the table.

It is attention in disguise: the hidden states are queries, the embedding table holds keys and values, the scores are
softcapped and tempered. So the table is read in blocks with a running maximum, sum, entropy term, argmax and
soft-embedding accumulator, and no array of canvas × vocabulary is ever made. The proposal is drawn by hierarchical
inverse CDF: the block in which the cumulative probability reaches u, the group of ids inside it, the id inside that.
`from_logits` is the plain twin.

Soft embeddings cost as much as the scores. With a `cutoff`, rows whose probability lies in a few groups of ids get
theirs from these alone, and only the others take part in the product with the whole table.

Shapes: B batch, C canvas, H hidden, W block, G group.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.alternatives import Alternatives, likeliest, ranked
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.model import fused

if TYPE_CHECKING:
    from mlx_dgemma.diffusion.diet import Shortlist

BLOCK = 8192  # ids whose scores are alive at a time
GROUP = 16  # ids that share one probability mass, the level between block and id in the draw
KEPT = 4  # groups that a sparse row's soft embedding is made from
DENSE_ROWS = 16  # the number of dense rows is a multiple of this, so that few sizes of buffers occur
_LOWEST = mx.array(-mx.inf)


@dataclass(frozen=True)
class SoftRows:
    """Which positions get soft embeddings from all ids; the others get them from their KEPT heaviest groups.

    Attributes:
        order: all row numbers (B·C).
        dense: how many of them, from the first on, get all ids.
    """

    order: mx.array
    dense: int

    @classmethod
    def of(cls, groups: mx.array) -> "SoftRows":
        """The rows after a step that left these counts (B, C); a row with half of KEPT has room to grow."""
        counts = np.array(groups).reshape(-1)
        dense = -(-int((counts > KEPT // 2).sum()) // DENSE_ROWS) * DENSE_ROWS
        return cls(mx.array(np.argsort(-counts, kind="stable")), min(dense, counts.size))


@dataclass(frozen=True)
class Query:
    """What a denoising step asks of the vocabulary.

    Attributes:
        temperature: divides the logits; one of each row, (B, 1, 1), where they differ.
        u: uniform floats (B, C) for the draw; None takes the argmax as proposal.
        wants_soft: whether soft embeddings are needed, which they are unless this is the last step.
        cutoff: nats; ids less likely than exp(−cutoff) times their row's likeliest need not count in soft embeddings.
            None asks for all ids.
        rows: which positions still get all ids under a cutoff; None means all.
        alternatives: how many of the likeliest ids of each position are told.
        keep: how many of the heaviest groups of ids of each position are told.
        shortlist: the groups that most positions are scored over (see `diet`); None scores all over all ids.
    """

    temperature: float | mx.array
    u: mx.array | None
    wants_soft: bool
    cutoff: float | None = None
    rows: SoftRows | None = None
    alternatives: int = 0
    keep: int = 0
    shortlist: "Shortlist | None" = None


@dataclass(frozen=True)
class Prediction:
    """What a step gets: ids, entropy and log-probability of the argmax in nats, all (B, C); soft embeddings (B, C, H).

    All of the tempered distribution. `groups`, with a cutoff: how many groups of ids hold more than the cutoff (B, C).
    `alternatives`: the likeliest ids and their log-probabilities, (B, C, K) both, likeliest first, if any were wanted.
    `scored` and `mixed`: positions × ids in scores and in soft embeddings, as computed. `heaviest`, if wanted: the
    heaviest groups of ids, ascending (B, C, K), and the probability of all others (B, C).
    """

    argmax: mx.array
    proposal: mx.array
    entropy: mx.array
    log_p: mx.array
    soft: mx.array | None
    groups: mx.array | None = None
    alternatives: Alternatives | None = None
    scored: int = 0
    mixed: int = 0
    heaviest: tuple[mx.array, mx.array] | None = None


@dataclass(frozen=True)
class Block:
    """What one block leaves behind; (B, C, 1) but for `masses` (B, C, N). Sums are relative to exp(maximum)."""

    maximum: mx.array  # running: the highest score up to and including this block
    best: mx.array  # this block's highest logit
    argmax: mx.array  # its id, counted from the block's first
    weighted: mx.array  # Σ p · (score − maximum), for the entropy
    masses: mx.array  # Σ p over each group of ids
    likely: tuple[mx.array, ...]  # the likeliest ids and their logits, (B, C, K) both; () if nobody asked


@dataclass(frozen=True)
class Sums:
    """What all blocks come to, relative to exp(maximum); (B, C, 1) where nothing else is said."""

    maximum: mx.array  # the highest score
    best: mx.array  # the highest logit
    argmax: mx.array  # its id, the smallest one on a tie
    total: mx.array  # Σ p
    weighted: mx.array  # Σ p · (score − maximum)
    totals: mx.array  # Σ p of each block, (B, C, blocks)
    masses: mx.array  # Σ p of each group of ids, relative to exp of its block's maximum, (B, C, blocks, N)
    maxima: mx.array  # which these are, (B, C, blocks)


def predict(hidden: mx.array, table: EmbeddingTable, query: Query, block: int | None = None) -> Prediction:
    """One walk over the vocabulary for hidden states (B, C, H); see the module's description."""
    return _conclude(hidden, table, query, *walk(hidden, table, query, block))


def walk(
    hidden: mx.array, table: EmbeddingTable, query: Query, block: int | None = None
) -> tuple[list[Block], mx.array | None]:
    """Reads the table block by block, so many ids at a time; what they leave, and Σ p · embedding of the dense rows."""
    width = -(-(block or BLOCK) // GROUP) * GROUP
    temperature, x = mx.array(query.temperature, mx.float32), hidden
    blocks: list[Block] = []
    soft: mx.array | None = None
    dense = None if query.rows is None else query.rows.order[: query.rows.dense]
    wants_mix = query.wants_soft and (dense is None or dense.size > 0)
    for start in range(0, table.size, width):
        stop = min(start + width, table.size)
        logits = table.logits(x, start, stop)  # (B, C, W)
        ids = logits.argmax(axis=-1, keepdims=True)
        best = mx.take_along_axis(logits, ids, axis=-1)
        maximum = fused.tempered_max(best, blocks[-1].maximum if blocks else _LOWEST, table.cap, temperature)
        p, weighted = fused.tempered_exp(logits, maximum, table.cap, temperature)
        if wants_mix:
            mixed = table.mix(_picked(p, dense), start, stop)
            bounds = [_picked(m, dense) for m in (blocks[-1].maximum, maximum)] if blocks else []
            soft = fused.add_rescaled(soft, *bounds, mixed) if blocks else mixed
        likely = likeliest(logits, query.alternatives, start)
        blocks.append(Block(maximum, best, ids, weighted.sum(axis=-1, keepdims=True), _group_masses(p, width), likely))
        # the next block waits for all that this one is needed for, or its arrays would stay alive beside the next one's
        needed = [blocks[-1].weighted, blocks[-1].masses, *likely]
        x = mx.depends([hidden], needed if soft is None else [*needed, soft])[0]
    return blocks, soft


def sums_of(blocks: list[Block]) -> Sums:
    """What they come to."""
    maximum, maxima, best = blocks[-1].maximum, _joined([b.maximum for b in blocks]), _joined([b.best for b in blocks])
    masses = mx.stack([b.masses for b in blocks], axis=2)  # (B, C, blocks, N)
    totals, weighted = fused.rescale(masses.sum(axis=-1), _joined([b.weighted for b in blocks]), maxima, maximum)
    which = best.argmax(axis=-1, keepdims=True)
    ids = mx.take_along_axis(_joined([b.argmax for b in blocks]), which, axis=-1) + which * masses.shape[-1] * GROUP
    best, ids = mx.take_along_axis(best, which, axis=-1), ids.astype(mx.int32)
    total, weighted = totals.sum(axis=-1, keepdims=True), weighted.sum(axis=-1, keepdims=True)
    return Sums(maximum, best, ids, total, weighted, totals, masses, maxima)


def _conclude(
    hidden: mx.array, table: EmbeddingTable, query: Query, blocks: list[Block], soft: mx.array | None
) -> Prediction:
    """What follows from all blocks; `soft` is the sum over ids, of the dense rows (R, H) if some are sparse."""
    sums, temperature = sums_of(blocks), mx.array(query.temperature, mx.float32)
    maximum, total, argmax = sums.maximum, sums.total, sums.argmax.squeeze(-1)
    entropy = fused.entropy(total, sums.weighted).squeeze(-1)
    log_p = -mx.log(total).squeeze(-1)  # sums are relative to the exponential of the argmax's score
    relative_to, groups, heaviest = (maximum, temperature), None, None
    final = (sums.masses * mx.exp(sums.maxima - maximum)[..., None]).flatten(
        2
    )  # (B, C, groups), the likeliest id has 1
    if query.keep:
        heaviest = _heaviest(final, query.keep, total)
    if query.cutoff is not None:
        groups = (final >= math.exp(-query.cutoff)).sum(axis=-1)
        if query.wants_soft and query.rows is not None:
            soft = _with_sparse_rows(soft, hidden, table, query.rows, query.cutoff, final, relative_to)
    if soft is not None:
        soft = fused.normalized(soft, total, table.scale)
    proposal = argmax
    if query.u is not None:
        proposal = draw(hidden, table, sums, query.u[..., None], temperature)
    alternatives = None
    if query.alternatives:
        ids, logits = (_joined([block.likely[i] for block in blocks]) for i in (0, 1))
        alternatives = ranked(ids, logits, query.alternatives, table.cap, temperature, (maximum, total))
    scored, mixed = argmax.size * table.size, mixed_ids(query, argmax.size, table.size)
    return Prediction(argmax, proposal, entropy, log_p, soft, groups, alternatives, scored, mixed, heaviest)


def _heaviest(masses: mx.array, keep: int, total: mx.array) -> tuple[mx.array, mx.array]:
    """The heaviest groups (B, C, K), ascending, and the probability of the others (B, C); masses (B, C, groups)."""
    keep = min(keep, masses.shape[-1])
    groups = mx.sort(mx.argpartition(masses, -keep, axis=-1)[..., -keep:], axis=-1)
    others = mx.put_along_axis(masses, groups, mx.array(0.0), axis=-1)  # 1 less the kept ones would lose small tails
    return groups, others.sum(axis=-1) / total.squeeze(-1)


def mixed_ids(query: Query, positions: int, vocabulary: int) -> int:
    """Positions × ids that go into soft embeddings."""
    if not query.wants_soft:
        return 0
    if query.rows is None:
        return positions * vocabulary
    return query.rows.dense * vocabulary + (positions - query.rows.dense) * min(KEPT * GROUP, vocabulary)


def _with_sparse_rows(
    soft: mx.array | None, hidden: mx.array, table: EmbeddingTable, which: SoftRows, cutoff: float,
    masses: mx.array, relative_to: tuple[mx.array, mx.array],
) -> mx.array:  # fmt: skip
    """The sums of all rows (B, C, H): those of the dense ones (R, H) and, from their heaviest groups, the others'."""
    sparse = which.order[which.dense :]
    if sparse.size:
        x, maximum, masses = (_picked(a, sparse) for a in (hidden, relative_to[0], masses))  # (N, …)
        kept = min(KEPT, masses.shape[-1])
        heaviest = mx.argpartition(masses, -kept, axis=-1)[..., -kept:]  # (N, kept)
        ids = (heaviest[..., None] * GROUP + mx.arange(GROUP)).flatten(1)  # (N, kept · G)
        rows = table.rows(mx.minimum(ids, table.size - 1), x.dtype)  # (N, kept · G, H)
        logits = (rows @ x[..., None]).squeeze(-1)
        size = mx.array(table.size, ids.dtype)
        p = fused.tempered_exp_below(logits, maximum, table.cap, relative_to[1], ids, size)
        p = mx.where(p >= math.exp(-cutoff), p, 0).astype(rows.dtype)
        mixed = (p[:, None] @ rows).squeeze(1).astype(mx.float32)
        soft = mixed if soft is None else mx.concatenate([soft, mixed])
    assert soft is not None  # no rows are dense only where some are sparse
    return soft[mx.argsort(which.order)].reshape(hidden.shape)


def _picked(x: mx.array, rows: mx.array | None) -> mx.array:
    """These rows of x (B, C, N), or all as they are: (R, N)."""
    return x if rows is None else x.flatten(0, 1)[rows]


def _joined(parts: list[mx.array]) -> mx.array:
    return mx.concatenate(parts, axis=-1)


def _group_masses(p: mx.array, width: int) -> mx.array:
    """Mass of each group of GROUP ids in a block: (B, C, W) -> (B, C, ⌈width / GROUP⌉); the last block may be short."""
    missing = -(-width // GROUP) * GROUP - p.shape[-1]
    if missing:
        p = mx.pad(p, [(0, 0), (0, 0), (0, missing)])
    return mx.unflatten(p, -1, (-1, GROUP)).sum(axis=-1)


def draw(hidden: mx.array, table: EmbeddingTable, sums: Sums, u: mx.array, temperature: mx.array) -> mx.array:
    """The id (B, C) that u (B, C, 1) falls into: its block, its group of ids in that, and the id."""
    index, u = descend(sums.totals, u)
    group, u = descend(mx.take_along_axis(sums.masses, index[..., None], axis=2).squeeze(2), u)
    first = (index * sums.masses.shape[-1] + group) * GROUP
    ids = first + mx.arange(GROUP)  # (B, C, G)
    rows = table.rows(mx.minimum(ids, table.size - 1), hidden.dtype)  # (B, C, G, H)
    logits = (rows @ hidden[..., None]).squeeze(-1)
    size = mx.array(table.size, ids.dtype)
    p = fused.tempered_exp_below(logits, sums.maximum, table.cap, temperature, ids, size)
    inside, _ = descend(p, u)
    return (first + inside).squeeze(-1).astype(mx.int32)


def descend(masses: mx.array, u: mx.array) -> tuple[mx.array, mx.array]:
    """Index of the mass that u (B, C, 1) falls into, and where inside it, in [0, 1]; masses (B, C, N)."""
    cumulative = mx.cumsum(masses, axis=-1)
    reach = u * cumulative[..., -1:]  # rounding may leave the sum away from 1
    index = (cumulative < reach).sum(axis=-1, keepdims=True)
    mass, end = mx.take_along_axis(masses, index, axis=-1), mx.take_along_axis(cumulative, index, axis=-1)
    return index, fused.position_inside(reach, end, mass)


def from_logits(logits: mx.array, query: Query, soft: mx.array | None = None) -> Prediction:
    """The plain twin of `predict`, from whole logits (B, C, V)."""
    tempered = logits / query.temperature
    log_p = sampling.log_probabilities(tempered)
    argmax = tempered.argmax(axis=-1).astype(mx.int32)
    proposal = argmax if query.u is None else sampling.draw(log_p, query.u)
    alternatives = None
    if query.alternatives:
        ids = mx.argsort(-log_p, axis=-1)[..., : query.alternatives]
        alternatives = ids, mx.take_along_axis(log_p, ids, axis=-1)
    return Prediction(
        argmax, proposal, sampling.token_entropy(log_p), log_p.max(axis=-1), soft, alternatives=alternatives
    )
