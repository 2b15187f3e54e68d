"""The vocabulary stage: from hidden states to argmax, proposal, entropy and soft embeddings in one walk over the table.

It is attention in disguise: the hidden states are queries, the embedding table holds keys and values, the scores are
softcapped and tempered. So the table is read in blocks with a running maximum, sum, entropy term, argmax and
soft-embedding accumulator, and no array of canvas × vocabulary is ever made. The proposal is drawn by hierarchical
inverse CDF: first the group of ids in which the cumulative probability reaches u, then the id inside it. `from_logits`
is the plain twin.

Shapes: B batch, C canvas, H hidden, W block, G group.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma import sampling
from mlx_dgemma.layers import softcap

BLOCK = 8192  # ids whose scores are alive at a time
GROUP = 64  # ids that share one probability mass, the first level of the draw
_NOTHING = -1e30  # score of an id that does not exist


@dataclass(frozen=True)
class Query:
    """What a denoising step asks of the vocabulary.

    Attributes:
        temperature: divides the logits.
        u: uniform floats (B, C) for the draw; None takes the argmax as proposal.
        wants_soft: whether soft embeddings are needed, which they are unless this is the last step.
    """

    temperature: float
    u: mx.array | None
    wants_soft: bool


@dataclass(frozen=True)
class Prediction:
    """Ids (B, C) of argmax and proposal, entropy (B, C) in nats, soft embeddings (B, C, H) or None."""

    argmax: mx.array
    proposal: mx.array
    entropy: mx.array
    soft: mx.array | None


class EmbeddingTable:
    """The tied embedding, quantized or not, as the keys and values of the stage; (V, H)."""

    def __init__(self, embedding: nn.Embedding | nn.QuantizedEmbedding, scale: mx.array, cap: float):
        self.embedding, self.scale, self.cap = embedding, scale, cap
        self.is_quantized = isinstance(embedding, nn.QuantizedEmbedding)
        self.size = embedding.weight.shape[0]

    def scores(self, hidden: mx.array, start: int, stop: int) -> mx.array:
        """Softcapped logits of ids start … stop: (B, C, H) -> (B, C, W), float32."""
        return softcap(self._product(hidden, start, stop, transpose=True).astype(mx.float32), self.cap)

    def mix(self, weights: mx.array, start: int, stop: int) -> mx.array:
        """Embeddings of ids start … stop in these proportions: (B, C, W) -> (B, C, H), float32."""
        weights = weights.astype(self.scale.dtype)
        return self._product(weights, start, stop, transpose=False).astype(mx.float32)

    def scores_of(self, hidden: mx.array, ids: mx.array) -> mx.array:
        """Softcapped logits of a few ids per position: (B, C, H) and (B, C, G) -> (B, C, G), float32."""
        e = self.embedding
        rows = e.weight[ids]  # (B, C, G, …)
        if self.is_quantized:
            biases = None if e.get("biases") is None else e.biases[ids]
            rows = mx.dequantize(rows, e.scales[ids], biases, e.group_size, e.bits, mode=e.mode)
        logits = (rows.astype(hidden.dtype) @ hidden[..., None]).squeeze(-1)
        return softcap(logits.astype(mx.float32), self.cap)

    def _product(self, x: mx.array, start: int, stop: int, *, transpose: bool) -> mx.array:
        e = self.embedding
        if not self.is_quantized:
            block = e.weight[start:stop]
            return x @ (block.T if transpose else block)
        biases = None if e.get("biases") is None else e.biases[start:stop]
        block = e.weight[start:stop], e.scales[start:stop], biases
        return mx.quantized_matmul(x, *block, transpose, e.group_size, e.bits, e.mode)


@dataclass(frozen=True)
class Running:
    """What the walk carries from block to block; (B, C) but for soft. Sums are relative to exp(maximum)."""

    maximum: mx.array
    total: mx.array
    weighted: mx.array  # Σ p · (score − maximum), for the entropy
    argmax: mx.array
    soft: mx.array | None  # (B, C, H)

    def arrays(self) -> list[mx.array]:
        own = [self.maximum, self.total, self.weighted, self.argmax]
        return own if self.soft is None else [*own, self.soft]


def predict(hidden: mx.array, table: EmbeddingTable, query: Query, block: int | None = None) -> Prediction:
    """One walk over the vocabulary for hidden states (B, C, H); see the module's description."""
    block, state, groups = block or BLOCK, None, []
    for start in range(0, table.size, block):
        stop = min(start + block, table.size)
        scores = table.scores(hidden, start, stop) / query.temperature  # (B, C, W)
        state, p = _fold(state, scores, start)
        if query.wants_soft:
            state = _with_soft(state, table.mix(p, start, stop))
        groups.append((_group_masses(p), state.maximum))
        # the next block waits for all that this one is needed for, or its arrays would stay alive beside the next one's
        hidden = mx.depends([hidden], [*state.arrays(), groups[-1][0]])[0]
    entropy = mx.log(state.total) - state.weighted / state.total
    proposal = state.argmax
    if query.u is not None:
        masses = mx.concatenate([mass * mx.exp(m - state.maximum)[..., None] for mass, m in groups], axis=-1)
        proposal = _draw(hidden, table, query, masses, _group_starts(table.size, block))
    soft = (state.soft / state.total[..., None]).astype(table.scale.dtype) * table.scale if query.wants_soft else None
    return Prediction(state.argmax, proposal, entropy, soft)


def _fold(state: Running | None, scores: mx.array, start: int) -> tuple[Running, mx.array]:
    """Takes a block in; returns the new state and the block's p = exp(score − maximum) (B, C, W)."""
    best = scores.max(axis=-1)
    argmax = (scores.argmax(axis=-1) + start).astype(mx.int32)
    maximum = best if state is None else mx.maximum(state.maximum, best)
    shifted = scores - maximum[..., None]
    p = mx.exp(shifted)
    total, weighted = p.sum(axis=-1), (p * shifted).sum(axis=-1)
    if state is None:
        return Running(maximum, total, weighted, argmax, None), p
    shift = state.maximum - maximum
    keep = mx.exp(shift)
    return Running(
        maximum,
        total + keep * state.total,
        weighted + keep * (state.weighted + shift * state.total),
        mx.where(best > state.maximum, argmax, state.argmax),  # the smallest id on a tie
        None if state.soft is None else keep[..., None] * state.soft,
    ), p


def _with_soft(state: Running, mixed: mx.array) -> Running:
    soft = mixed if state.soft is None else state.soft + mixed
    return Running(state.maximum, state.total, state.weighted, state.argmax, soft)


def _group_masses(p: mx.array) -> mx.array:
    """Probability mass of each group of GROUP ids in a block: (B, C, W) -> (B, C, ⌈W / G⌉)."""
    missing = -p.shape[-1] % GROUP
    if missing:
        p = mx.pad(p, [(0, 0), (0, 0), (0, missing)])
    return mx.unflatten(p, -1, (-1, GROUP)).sum(axis=-1)


def _group_starts(size: int, block: int) -> mx.array:
    """First id of every group, block after block."""
    blocks = (range(start, min(start + block, size), GROUP) for start in range(0, size, block))
    return mx.array([first for block_starts in blocks for first in block_starts])


def _draw(hidden: mx.array, table: EmbeddingTable, query: Query, masses: mx.array, starts: mx.array) -> mx.array:
    """Inverse CDF in two levels: the group that u falls into, then the id inside it; ids (B, C)."""
    cumulative = mx.cumsum(masses, axis=-1)
    reach = query.u[..., None] * cumulative[..., -1:]  # rounding may leave the sum away from 1
    group = (cumulative < reach).sum(axis=-1, keepdims=True)  # (B, C, 1)
    before = mx.take_along_axis(cumulative - masses, group, axis=-1)
    inside = (reach - before) / mx.maximum(mx.take_along_axis(masses, group, axis=-1), 1e-37)
    first = starts[group]
    ends = mx.concatenate([starts[1:], mx.array([table.size], starts.dtype)])
    ids = first + mx.arange(GROUP)  # (B, C, G)
    scores = table.scores_of(hidden, mx.minimum(ids, table.size - 1)) / query.temperature
    log_p = sampling.log_probabilities(mx.where(ids < ends[group], scores, _NOTHING))
    return (first[..., 0] + sampling.draw(log_p, mx.clip(inside[..., 0], 0, 1))).astype(mx.int32)


def from_logits(logits: mx.array, query: Query, soft: mx.array | None = None) -> Prediction:
    """The plain twin of `predict`, from whole logits (B, C, V)."""
    tempered = logits / query.temperature
    log_p = sampling.log_probabilities(tempered)
    argmax = tempered.argmax(axis=-1).astype(mx.int32)
    proposal = argmax if query.u is None else sampling.draw(log_p, query.u)
    return Prediction(argmax, proposal, sampling.token_entropy(log_p), soft)
