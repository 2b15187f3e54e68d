"""The vocabulary stage where every rank holds some rows of the embedding table; see `model.tensor`.

Ranks are to each other what blocks are to one walk (`vocabulary`): each tells its highest logit and score, its id, and
its sums relative to that score; from these every rank computes argmax, entropy and probability alike. For the proposal
the ranks' masses say in whose rows the draw falls; its owner draws with what is left of u. Soft embeddings are a sum.

Three exchanges a step, one after another: the statistics, whole numbers as bits; the drawn ids; the soft embeddings.
"""

import mlx.core as mx

from mlx_dgemma.diffusion.alternatives import Alternatives, ranked
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import Block, Prediction, Query, Sums, descend, draw, sums_of, walk
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import fused
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.cut import Cut
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.ranks import Ranks
from mlx_dgemma.model.tensor import TensorModel

_NOT_CUT = "needs the whole embedding table, of which every rank holds a part (tensor parallelism); leave it out"


def check_settings(model: DiffusionGemma, settings: GenerationConfig) -> None:
    """Raises DGemmaError for what a model whose vocabulary is cut cannot do."""
    if not isinstance(model, TensorModel):
        return
    if settings.soft_embedding_cutoff is not None:
        raise DGemmaError(f"soft_embedding_cutoff {_NOT_CUT}")
    if settings.rest is not None and settings.rest.walk_every is not None:
        raise DGemmaError(f"walk_every {_NOT_CUT}")


class RowsDenoiser(ModelDenoiser):
    """One rank's denoiser; all ranks ask theirs the same, and each gets the whole answer."""

    def __init__(self, model: TensorModel, cache: PrefixCache):
        super().__init__(model, cache)
        self.cut, self.ranks = model.cut, model.ranks

    def answer(self, hidden: mx.array, query: Query, block: int | None = None) -> Prediction:
        return predict_by_rows(hidden, self.table, query, (self.cut, self.ranks), block)


def predict_by_rows(
    hidden: mx.array, table: EmbeddingTable, query: Query, among: tuple[Cut, Ranks], block: int | None = None
) -> Prediction:
    """`vocabulary.predict` for hidden states (B, C, H), the same on all ranks, of which each has some rows as table.

    Raises:
        DGemmaError: a query that needs the whole table.
    """
    if query.cutoff is not None or query.keep or query.shortlist is not None:
        raise DGemmaError(f"a cutoff or a shortlist of ids {_NOT_CUT}")
    cut, ranks = among
    blocks, soft = walk(hidden, table, query, block)
    own, temperature = sums_of(blocks), mx.array(query.temperature, mx.float32)
    count = min(query.alternatives, cut.config.vocab_size)
    told = _told_all(own, blocks, count, among)  # (B, C, ranks, columns)
    best, maxima, totals, weighted = (told[..., i].view(mx.float32) for i in range(4))  # (B, C, ranks)
    maximum = maxima.max(axis=-1, keepdims=True)
    totals, weighted = fused.rescale(totals, weighted, maxima, maximum)
    total = totals.sum(axis=-1, keepdims=True)
    entropy = fused.entropy(total, weighted.sum(axis=-1, keepdims=True)).squeeze(-1)
    first = best.argmax(axis=-1, keepdims=True)  # of a tie the lowest rank, which has the smallest ids
    argmax = mx.take_along_axis(told[..., 4], first, axis=-1).squeeze(-1)
    proposal = argmax
    if query.u is not None:
        owner, u = descend(totals, query.u[..., None])
        mine = draw(hidden, table, own, u, temperature) + cut.rows.start
        proposal = ranks.all_sum(mx.where(owner.squeeze(-1) == ranks.rank, mine, 0))
    if soft is not None:
        summand = soft * mx.exp(own.maximum - maximum)
        soft = ranks.all_sum(mx.depends([summand], [proposal])[0])
        soft = fused.normalized(soft, total, table.scale)
    alternatives = _alternatives(told, count, table, temperature, (maximum, total))
    scored = argmax.size * cut.config.vocab_size
    log_p = -mx.log(total).squeeze(-1)
    mixed = scored if query.wants_soft else 0
    return Prediction(argmax, proposal, entropy, log_p, soft, None, alternatives, scored, mixed)


def _told_all(own: Sums, blocks: list[Block], count: int, among: tuple[Cut, Ranks]) -> mx.array:
    """Every rank's statistics, and its likeliest ids and logits, as bits: (B, C, ranks, 5 + 2 · count), int32."""
    cut, ranks = among
    numbers = [own.best, own.maximum, own.total, own.weighted]
    columns = [mx.concatenate(numbers, axis=-1).astype(mx.float32).view(mx.int32), own.argmax + cut.rows.start]
    if count:
        ids, logits = (mx.concatenate([block.likely[i] for block in blocks], axis=-1) for i in (0, 1))
        missing = [(0, 0), (0, 0), (0, max(0, count - ids.shape[-1]))]  # all send alike
        ids = mx.pad(ids.astype(mx.int32) + cut.rows.start, missing)
        logits = mx.pad(logits.astype(mx.float32), missing, constant_values=mx.array(-mx.inf))
        order = mx.argsort(-logits, axis=-1)[..., :count]
        ids, logits = (mx.take_along_axis(x, order, axis=-1) for x in (ids, logits))
        columns += [ids, logits.view(mx.int32)]
    return mx.moveaxis(ranks.all_gather(mx.concatenate(columns, axis=-1)[None]), 0, 2)


def _alternatives(
    told: mx.array, count: int, table: EmbeddingTable, temperature: mx.array, relative: tuple[mx.array, mx.array]
) -> Alternatives | None:
    """The likeliest of what all ranks told."""
    if not count:
        return None
    ids, logits = told[..., 5 : 5 + count].flatten(2), told[..., 5 + count :].flatten(2).view(mx.float32)
    return ranked(ids.astype(mx.uint32), logits, count, table.cap, temperature, relative)
