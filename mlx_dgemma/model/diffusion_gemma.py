"""DiffusionGemma: one set of weights, a causal encoder of the prefix and a bidirectional denoiser of the canvas.

The module tree carries the checkpoint's names, so weights load without renaming (experts aside, see `checkpoint`).
The reference is transformers, models/diffusion_gemma.
"""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.errors import ContextOverflow, DGemmaError
from mlx_dgemma.model import fused
from mlx_dgemma.model.attention import Attention, Extend, Gather, Place
from mlx_dgemma.model.cache import PrefixCache, Slots
from mlx_dgemma.model.config import LayerConfig, ModelConfig
from mlx_dgemma.model.layers import GatedMLP, rms_norm, softcap, tensors
from mlx_dgemma.model.moe import Experts, Router
from mlx_dgemma.model.ranks import Ranks
from mlx_dgemma.model.scores import Attend, attend_all, attend_causally, attend_image
from mlx_dgemma.model.share import Part, Share, up_to
from mlx_dgemma.model.vision import Eyes


class Layer(nn.Module):
    """Attention, then dense MLP and experts side by side. The layer scalar differs between the two modes."""

    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = GatedMLP(hidden, config.intermediate_size)
        self.router = Router(config)
        self.experts = Experts(config)
        self.input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.post_feedforward_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.post_feedforward_layernorm_1 = nn.RMSNorm(hidden, eps=eps)
        self.post_feedforward_layernorm_2 = nn.RMSNorm(hidden, eps=eps)
        self.pre_feedforward_layernorm_2 = nn.RMSNorm(hidden, eps=eps)
        self.layer_scalar = mx.ones((1,))

    def __call__(
        self, x: mx.array, places: Sequence[Place], scalar: mx.array, gather: Gather | None = None
    ) -> mx.array:  # fmt: skip
        """x (B, T, H) -> (B, T, H); `gather` as in `Attention`."""
        (h,) = self._whole(self.self_attn(self.input_layernorm(x), places, gather))
        residual = x + self.post_attention_layernorm(h)
        weights, chosen = self.router(residual)  # the router reads the raw residual stream
        dense = self.mlp(self.pre_feedforward_layernorm(residual))
        sparse = self.experts(self.pre_feedforward_layernorm_2(residual), weights, chosen)
        dense, sparse = self._whole(dense, sparse)
        dense, sparse = self.post_feedforward_layernorm_1(dense), self.post_feedforward_layernorm_2(sparse)
        out: mx.array = fused.add_and_scale(residual, self.post_feedforward_layernorm(dense + sparse), scalar)
        return out

    def _whole(self, *sums: mx.array) -> Sequence[mx.array]:
        """Of sums over heads and over inner columns, what they are over all of them; here all are there."""
        return sums


class SelfConditioning(GatedMLP):
    """Mixes the previous step's soft embeddings into the canvas embeddings."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.hidden_size, config.intermediate_size)
        self.pre_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.eps = config.rms_norm_eps

    def mixed(self, embeddings: mx.array, soft: mx.array | None) -> mx.array:
        """embeddings and soft (B, C, H) -> (B, C, H). At the first step soft is None: zeros give a zero signal."""
        signal = 0 if soft is None else self(self.pre_norm(soft))
        return rms_norm(embeddings + signal, self.eps)


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(config)


class EncoderLayer(nn.Module):
    """All that the encoder does not share with the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scalar = mx.ones((1,))


class EncoderText(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.layers = [EncoderLayer() for _ in config.layers]


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.language_model = EncoderText(config)


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.decoder = Decoder(config)
        self.encoder = Encoder(config)


def _denoising(cache: PrefixCache, layer: int, slots: Slots | None, part: Part | None) -> Place:
    """Where a canvas, or some positions of one, stands behind a prefix."""
    extend = partial(cache.layers[layer].overlay, slots=slots)
    at = None if slots is None else slots.at
    if part is not None:
        at = part.own if at is None else at[part.own]
    return Place(cache.length, extend, attend_all, at)


class DiffusionGemma(nn.Module):
    """The model in both modes; `encode` extends a prefix cache, `denoise` only reads it.

    Attributes:
        eyes: what sees images, none of whose weights are parameters of this module; None where nothing does.
        no_eyes: why not, in one line.
        image_mask: how the tokens of an image see each other, one of `scores.IMAGE_MASKS`; causally where config.json
            says so.
        share: among which processes its passes are shared; None for this one alone.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.eyes: Eyes | None = None
        self.no_eyes = "this model was made without a vision tower; load it from a checkpoint that has one"
        self.image_mask: Attend = attend_image if config.images_both_ways else attend_causally
        self.share: Share | None = None

    def tensors(self) -> dict[str, mx.array]:
        """All parameters by name."""
        return tensors(self)

    @property
    def nbytes(self) -> int:
        """Of all parameters."""
        return sum(parameter.nbytes for parameter in self.tensors().values())

    @property
    def ranks(self) -> Ranks | None:
        """The processes that have to make the same passes in the same order; None for this one alone."""
        return self.share

    def require_eyes(self) -> Eyes:
        """What sees images.

        Raises:
            DGemmaError: the checkpoint cannot see, and why.
        """
        if self.eyes is None:
            raise DGemmaError(self.no_eyes)
        return self.eyes

    def make_cache(self) -> PrefixCache:
        """An empty prefix."""
        return PrefixCache([layer.window for layer in self.config.layers])

    def encode(self, tokens: mx.array, cache: PrefixCache) -> mx.array:
        """Encoder mode: reads ids (B, T) causally and appends their keys and values to the prefix.

        Returns:
            The last hidden states, normed, (B, T, H), of which `logits` makes what the causal model expects next. Where
            nobody asks for them, the last layer's output is never computed.
        """
        return self._append(self._embed(tokens), cache, attend_causally)

    def encode_image(self, features: mx.array, cache: PrefixCache) -> mx.array:
        """Encoder mode: appends an image to the prefix, whose tokens see each other as `image_mask` says.

        Args:
            features: what the tower made of the whole image, (B, N, H); not scaled as embeddings of ids are.
            cache: the prefix.

        Returns:
            As `encode`, (B, N, H).
        """
        return self._append(features.astype(self._dtype), cache, self.image_mask)

    def _append(self, h: mx.array, cache: PrefixCache, attend: Attend) -> mx.array:
        hidden = self._encode(h, cache, [layer.append for layer in cache.layers], attend)
        cache.length += h.shape[1]
        return hidden

    def peek(self, tokens: mx.array, cache: PrefixCache) -> mx.array:
        """What `encode` gives, (B, T, H), and the prefix stays as it was."""
        return self._encode(self._embed(tokens), cache, [layer.overlay for layer in cache.layers], attend_causally)

    def _encode(self, h: mx.array, cache: PrefixCache, extends: Sequence[Extend], attend: Attend) -> mx.array:
        length = h.shape[1]
        if cache.length + length > self.config.max_position_embeddings:
            raise ContextOverflow(
                f"{cache.length + length} prefix tokens exceed max_position_embeddings "
                f"({self.config.max_position_embeddings}); shorten the prompt"
            )
        scalars = self.model.encoder.language_model.layers
        # an image's tokens see each other, and a part of them would see less
        block = self.share.block(length) if self.share is not None and attend is attend_causally else None
        part, end = (None, length) if block is None else block
        h = h if part is None else h[:, part.own]
        begin = cache.length + end - h.shape[1]
        for layer, own, extend in zip(self.model.decoder.layers, scalars, extends, strict=True):
            place = Place(begin, up_to(extend, length - end), attend)
            h = layer(h, [place], own.layer_scalar, None if part is None else part.keys_and_values)
        normed: mx.array = self.model.decoder.norm(h)
        return normed if part is None else part.columns(normed)

    def next_token_logits(self, tokens: mx.array, cache: PrefixCache) -> mx.array:
        """Encoder mode, and what the causal model expects after each of the ids (B, T): logits (B, T, V), float32."""
        return self.logits(self.encode(tokens, cache))

    def denoise(self, canvas: mx.array, cache: PrefixCache, previous: mx.array | None = None) -> mx.array:
        """Denoiser mode: one step over the canvas.

        Args:
            canvas: token ids (B, C), at positions cache.length … cache.length + C − 1.
            cache: the prefix, left as it was.
            previous: the last step's tempered logits (B, C, V) for self-conditioning; None at the first step.

        Returns:
            Softcapped logits (B, C, V), float32.
        """
        soft = None if previous is None else self.soft_embeddings(previous)
        return self.logits(self.denoise_hidden(canvas, [cache], soft))

    def denoise_hidden(
        self, canvas: mx.array, caches: Sequence[PrefixCache], soft: mx.array | None = None,
        slots: Slots | None = None, part: Part | None = None,
    ) -> mx.array:  # fmt: skip
        """Denoiser mode up to the last hidden states, normed.

        Args:
            canvas: token ids (B, C).
            caches: the prefix of all rows, or one prefix of one row for each of them; they may differ in length.
            soft: soft embeddings (B, C, H), zeros for a row at its first step; None if all are.
            slots: which positions of the canvas `canvas` and `soft` hold, (B, R) and (B, R, H); the others keep the
                keys and values that an earlier pass over the same prefix has left. None: all of them.
            part: which of them are computed here, the others elsewhere. None: all of them.

        Returns:
            Of what is computed here: (B, C, H), or (B, R, H).
        """
        decoder = self.model.decoder
        if part is not None:
            canvas, soft = canvas[:, part.own], None if soft is None else soft[:, part.own]
        h = decoder.self_conditioning.mixed(self._embed(canvas), soft)
        for i, layer in enumerate(decoder.layers):
            # not causal: every canvas token sees all that the layer kept of its prefix, and the whole canvas
            places = [_denoising(cache, i, slots, part) for cache in caches]
            h = layer(h, places, layer.layer_scalar, None if part is None else part.keys_and_values)
        normed: mx.array = decoder.norm(h)
        return normed

    def logits(self, hidden: mx.array) -> mx.array:
        """Softcapped logits of normed hidden states: (B, T, H) -> (B, T, V), float32."""
        logits = self.model.decoder.embed_tokens.as_linear(hidden).astype(mx.float32)
        return softcap(logits, self.config.final_logit_softcapping)

    def soft_embeddings(self, tempered: mx.array) -> mx.array:
        """Expected embedding under softmax(tempered): (B, C, V) -> (B, C, H)."""
        dtype = self._dtype  # in which the reference stores the tempered logits between steps
        probabilities = mx.softmax(tempered.astype(dtype).astype(mx.float32), axis=-1).astype(dtype)
        return self._mixed(probabilities) * self.embedding_scale

    def _mixed(self, probabilities: mx.array) -> mx.array:
        """Embeddings in these proportions: (B, C, V) -> (B, C, H)."""
        table = self.model.decoder.embed_tokens
        if not isinstance(table, nn.QuantizedEmbedding):
            return probabilities @ table.weight
        return mx.quantized_matmul(
            probabilities, table.weight, table.scales, table.get("biases"), transpose=False,
            group_size=table.group_size, bits=table.bits, mode=table.mode,
        )  # fmt: skip

    def _embed(self, tokens: mx.array) -> mx.array:
        # the cast matters where MLX dequantizes to bfloat16 whatever the model's type (mxfp4, nvfp4, mxfp8)
        rows: mx.array = self.model.decoder.embed_tokens(tokens)
        return rows.astype(self._dtype) * self.embedding_scale

    @property
    def _dtype(self) -> mx.Dtype:
        """What activations are computed in: norms are never quantized."""
        return self.model.decoder.norm.weight.dtype

    @property
    def embedding_scale(self) -> mx.array:
        """√hidden in the weights' type, for token and soft embeddings alike."""
        return mx.array(self.config.hidden_size**0.5, self._dtype)  # √2816 is 53.0 in bfloat16
