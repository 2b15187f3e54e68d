"""Tensor parallelism: every rank holds a part of the weights, and all compute every pass together.

Each rank computes with its heads, inner columns and vocabulary rows (`cut`); what comes out of attention, and out of
MLP and experts, is a sum over all ranks. The latter two are exchanged as one array, but apart: each has a norm of its
own before they are added. Everything else is computed on every rank alike, so ranks have the same bits in the same
places as long as they are the same kind of machine. They have to be: a router that decides otherwise would mix experts.

    exchanges of a pass   embeddings, two sums a layer, and what the vocabulary stage needs (`diffusion.rows`)

Against one process sums have another order, so that results are equal to rounding. The vision tower is whole on every
rank, and images are seen on each.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.model.cache import PrefixCache, Slots
from mlx_dgemma.model.config import LayerConfig, ModelConfig
from mlx_dgemma.model.cut import Cut, Units
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma, Layer
from mlx_dgemma.model.layers import softcap
from mlx_dgemma.model.moe import QuantizedExpertLinear
from mlx_dgemma.model.ranks import Ranks, joined
from mlx_dgemma.model.share import Part


class ShardedLayer(Layer):
    """One rank's part of a layer, whose sums are those of all ranks."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, ranks: Ranks):
        super().__init__(config, layer)
        self._ranks = ranks

    def _whole(self, *sums: mx.array) -> Sequence[mx.array]:
        return list(self._ranks.all_sum(mx.stack(list(sums))))


class TensorModel(DiffusionGemma):
    """One rank's part of the model. Every rank has to make the same passes in the same order.

    Attributes:
        cut: which part.
    """

    def __init__(self, cut: Cut, ranks: Ranks):
        super().__init__(cut.config)
        self.cut, self._ranks = cut, ranks
        decoder = self.model.decoder
        decoder.layers = [ShardedLayer(config, layer, ranks) for config, layer in cut.configs()]
        decoder.embed_tokens = nn.Embedding(len(cut.rows), cut.config.hidden_size)
        self._nbytes: int | None = None

    @property
    def ranks(self) -> Ranks:
        return self._ranks

    @property
    def nbytes(self) -> int:
        """Of the parameters of the rank that has most, so that all decide alike; see `compare_sizes`."""
        return super().nbytes if self._nbytes is None else self._nbytes

    def compare_sizes(self) -> None:
        """Learns how much the others hold; all ranks have to ask."""
        self._nbytes = max(self._ranks.numbers(-(-super().nbytes // 1024))) * 1024

    def denoise_hidden(
        self, canvas: mx.array, caches: Sequence[PrefixCache], soft: mx.array | None = None,
        slots: Slots | None = None, part: Part | None = None,
    ) -> mx.array:  # fmt: skip
        if soft is not None:  # its sum comes before that of the embeddings, on every rank
            canvas = mx.depends([canvas], [soft])[0]
        return super().denoise_hidden(canvas, caches, soft, slots, part)

    def logits(self, hidden: mx.array) -> mx.array:
        """Softcapped logits, of which every rank computes some: (…, H) -> (…, V), float32."""
        logits = self.model.decoder.embed_tokens.as_linear(hidden).astype(mx.float32)
        rows = mx.moveaxis(softcap(logits, self.config.final_logit_softcapping), -1, 0)
        return mx.moveaxis(joined(self._ranks, rows, [len(own) for own in self.cut.everyones_rows]), 0, -1)

    def _mixed(self, probabilities: mx.array) -> mx.array:
        own = self.cut.rows
        return self._ranks.all_sum(super()._mixed(probabilities[..., own.start : own.stop]))

    def _embed(self, tokens: mx.array) -> mx.array:
        own = self.cut.rows
        is_own = (tokens >= own.start) & (tokens < own.stop)
        rows = super()._embed(mx.where(is_own, tokens - own.start, 0))
        return self._ranks.all_sum(mx.where(is_own[..., None], rows, 0))


def units_of(model: DiffusionGemma) -> list[Units]:
    """What must not be cut in each layer of a whole model, which may be without weights."""
    return [
        Units(*map(_group, (layer.self_attn.o_proj, layer.mlp.down_proj, layer.experts.down_proj)))
        for layer in model.model.decoder.layers
    ]


def _group(linear: nn.Module) -> int:
    """Input columns that share a scale."""
    return linear.group_size if isinstance(linear, nn.QuantizedLinear | QuantizedExpertLinear) else 1
