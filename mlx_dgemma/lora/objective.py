"""The loss of a block diffusion model, and how it is computed within a Mac's memory.

The sources are Google's adapter (google-deepmind/gemma, gemma/diffusion) and, for masks, its sampler, whose form
transformers has too. Of an answer one canvas is taken; each of its tokens becomes, with a probability t that is drawn
for the canvas, a uniformly random one; the loss is

    denoiser   mean cross-entropy over the canvas, corrupted or not, fill included, without a weight for t
    encoder    mean cross-entropy of each token after those before it, of prompt and answer

The canvas sees what stands before it through the encoder, whose keys and values gradients flow into. Half of the
canvases see their own first guess as soft embeddings, made without gradient; the others zeros, as in a generation's
first step.

Keys and values are outputs of each layer of the encoder and inputs of the denoiser's: nothing passes beside the graph,
so that layers can be computed again in the backward pass (`again`) instead of being kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.model.attention import Place
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma, Layer
from mlx_dgemma.model.scores import attend_all, attend_causally

SLICE = 256  # rows whose logits over the vocabulary are alive at a time
T_MIN = 1e-4  # of the share that is corrupted, which is uniform up to 1
KeysValues = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Lesson:
    """One canvas of an answer, and what stands before it.

    Attributes:
        ids: (1, T); prompt and answer, the canvas at their end or somewhere before it.
        targets: (T,) bool; the tokens that the encoder's loss counts, each expected after those before it.
        start: where the canvas begins.
        counted: (C,) bool; the positions of the canvas that the denoiser's loss counts.
    """

    ids: mx.array
    targets: mx.array
    start: int
    counted: mx.array

    @property
    def canvas(self) -> mx.array:
        """The clean one, (1, C)."""
        return self.ids[:, self.start : self.start + self.counted.size]


@dataclass(frozen=True)
class Losses:
    """Nats per counted token, scalars."""

    denoiser: mx.array
    encoder: mx.array


def corrupted(canvas: mx.array, vocabulary: int, key: mx.array, t: mx.array | None = None) -> mx.array:
    """Ids (B, C) of which each became, with probability t, any id of the vocabulary; t is (B, 1), or drawn by row."""
    draws = mx.random.split(key, 3)
    if t is None:
        t = mx.random.uniform(T_MIN, 1, (len(canvas), 1), key=draws[0])
    noise = mx.random.randint(0, vocabulary, canvas.shape, key=draws[1]).astype(canvas.dtype)
    return mx.where(mx.random.uniform(shape=canvas.shape, key=draws[2]) < t, noise, canvas)


def losses(
    model: DiffusionGemma, lesson: Lesson, noisy: mx.array, *, conditioned: bool, again: bool = False
) -> Losses:  # fmt: skip
    """The losses of a canvas that was corrupted.

    Args:
        model: without fused projections, where they are trained apart.
        lesson: what is taught.
        noisy: the corrupted canvas, (1, C).
        conditioned: whether the denoiser sees its own first guess.
        again: compute each layer again in the backward pass instead of keeping what it makes.
    """
    hidden, kept = _encode(model, lesson.ids, again=again)
    encoder = _cross_entropy(model, hidden[:, :-1], lesson.ids[:, 1:], lesson.targets[1:])
    prefix = [
        _before(own, lesson.start, layer.self_attn.window) for own, layer in zip(kept, _layers(model), strict=True)
    ]
    soft = None
    if conditioned:
        first = _denoise(model, noisy, prefix, lesson.start, None, again=False)
        soft = _soft_embeddings(model, mx.stop_gradient(first))
    hidden = _denoise(model, noisy, prefix, lesson.start, soft, again=again)
    return Losses(_cross_entropy(model, hidden, lesson.canvas, lesson.counted), encoder)


def _layers(model: DiffusionGemma) -> Sequence[Layer]:
    return model.model.decoder.layers


def _before(kept: KeysValues, start: int, window: int | None) -> KeysValues:
    """What a canvas sees of a layer's keys and values: as much as the sampler's cache would have kept."""
    first = 0 if window is None else max(0, start - (window - 1))
    return kept[0][:, :, first:start], kept[1][:, :, first:start]


def _encode(model: DiffusionGemma, ids: mx.array, *, again: bool) -> tuple[mx.array, list[KeysValues]]:
    """Encoder mode over a whole text: hidden states, normed, and keys and values of every layer."""
    h, kept = model._embed(ids), list[KeysValues]()
    for layer, own in zip(_layers(model), model.model.encoder.language_model.layers, strict=True):
        h, k, v = _maybe_again(layer, partial(_encode_layer, layer), again)(h, own.layer_scalar)
        kept.append((k, v))
    return model.model.decoder.norm(h), kept


def _encode_layer(layer: Layer, x: mx.array, scalar: mx.array) -> tuple[mx.array, ...]:
    """A layer's output, and the keys and values that it made."""
    new = list[mx.array]()

    def extend(k: mx.array, v: mx.array) -> KeysValues:
        new.extend((k, v))
        return k, v

    return layer(x, [Place(0, extend, attend_causally)], scalar), *new


def _denoise(
    model: DiffusionGemma, canvas: mx.array, prefix: Sequence[KeysValues], start: int, soft: mx.array | None, *,
    again: bool,
) -> mx.array:  # fmt: skip
    """Denoiser mode: hidden states of a canvas, normed, (1, C, H)."""
    decoder = model.model.decoder
    h = decoder.self_conditioning.mixed(model._embed(canvas), soft)
    for layer, (k, v) in zip(decoder.layers, prefix, strict=True):
        h = _maybe_again(layer, partial(_denoise_layer, layer, start), again)(h, k, v)
    normed: mx.array = decoder.norm(h)
    return normed


def _denoise_layer(layer: Layer, start: int, x: mx.array, k0: mx.array, v0: mx.array) -> mx.array:
    def extend(k: mx.array, v: mx.array) -> KeysValues:
        return mx.concatenate([k0, k], axis=2), mx.concatenate([v0, v], axis=2)

    return layer(x, [Place(start, extend, attend_all)], layer.layer_scalar)


def _maybe_again(module: nn.Module, run: Callable[..., Any], again: bool) -> Callable[..., Any]:
    """`run`, which uses a module, made so that its insides are computed again in the backward pass.

    What gradients flow into has to be a parameter of the module or an input: what is merely used inside gets none.
    """
    if not again:
        return run

    def inner(parameters: dict[str, Any], *inputs: mx.array) -> Any:
        module.update(parameters)
        return run(*inputs)

    checkpointed = mx.checkpoint(inner)
    trainable: Callable[[], dict[str, Any]] = module.trainable_parameters
    return lambda *inputs: checkpointed(trainable(), *inputs)


def _soft_embeddings(model: DiffusionGemma, hidden: mx.array) -> mx.array:
    """What a generation's next step would see, slice by slice: (1, C, H) -> (1, C, H).

    Probabilities have no gradient; the table that they are a mean of has, as in the reference.
    """
    parts = [hidden[:, i : i + SLICE] for i in range(0, hidden.shape[1], SLICE)]
    return mx.concatenate([model.soft_embeddings(mx.stop_gradient(model.logits(part))) for part in parts], axis=1)


def _cross_entropy(model: DiffusionGemma, hidden: mx.array, ids: mx.array, counted: mx.array) -> mx.array:
    """Mean nats of these ids (1, T) at counted positions (T,), from normed hidden states (1, T, H), in slices."""
    table = model.model.decoder.embed_tokens

    total = mx.zeros(())
    for start in range(0, hidden.shape[1], SLICE):
        own = slice(start, start + SLICE)
        run = partial(_nats, model, ids[:, own], counted[own])
        total = total + _maybe_again(table, run, True)(hidden[:, own])
    return total / mx.maximum(counted.sum(), 1)


def _nats(model: DiffusionGemma, ids: mx.array, counts: mx.array, hidden: mx.array) -> mx.array:
    """The sum over counted positions."""
    return (nn.losses.cross_entropy(model.logits(hidden), ids) * counts).sum()
