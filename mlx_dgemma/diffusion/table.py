"""The tied embedding table as the vocabulary stage reads it: in slices, by rows, quantized or not."""

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.model import trust


class EmbeddingTable:
    """The tied embedding (V, H), quantized or not: keys and values of the stage. Logits are before softcapping."""

    def __init__(self, embedding: nn.Embedding | nn.QuantizedEmbedding, scale: mx.array, cap: float):
        self.embedding, self.scale, self.cap = embedding, scale, mx.array(cap, mx.float32)
        self.is_quantized = isinstance(embedding, nn.QuantizedEmbedding)
        self.size = embedding.weight.shape[0]

    def logits(self, hidden: mx.array, start: int, stop: int) -> mx.array:
        """Logits of ids start … stop: (B, C, H) -> (B, C, W)."""
        return self._product(hidden, start, stop, transpose=True)

    def mix(self, weights: mx.array, start: int, stop: int) -> mx.array:
        """Embeddings of ids start … stop in these proportions: (B, C, W) -> (B, C, H), float32."""
        weights = weights.astype(self.scale.dtype)
        return self._product(weights, start, stop, transpose=False).astype(mx.float32)

    def rows(self, ids: mx.array, dtype: mx.Dtype) -> mx.array:
        """Embeddings of ids of any shape: (…) -> (…, H)."""
        e = self.embedding
        rows = e.weight[ids]
        if isinstance(e, nn.QuantizedEmbedding):
            biases = e.get("biases")
            biases = None if biases is None else biases[ids]
            rows = mx.dequantize(rows, e.scales[ids], biases, e.group_size, e.bits, mode=e.mode)
        return rows.astype(dtype)

    def _product(self, x: mx.array, start: int, stop: int, *, transpose: bool) -> mx.array:
        e = self.embedding
        if isinstance(e, nn.QuantizedEmbedding) and trust.is_trusted("sliced products"):
            biases = e.get("biases")
            biases = None if biases is None else biases[start:stop]
            block, scales = e.weight[start:stop], e.scales[start:stop]
            return mx.quantized_matmul(x, block, scales, biases, transpose, e.group_size, e.bits, e.mode)
        # where kernels cannot read quantized rows in their places, they are gathered and multiplied as floats
        rows = self.rows(mx.arange(start, stop), x.dtype) if self.is_quantized else e.weight[start:stop]
        return x @ (rows.T if transpose else rows)
