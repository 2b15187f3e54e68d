"""Encoder and denoiser mode against the reference, float32: max |Δ| ≤ 1e-4 of the logit range."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import DynamicCache

from mlx_dgemma.model.prefill import prefill
from tests.conftest import CANVAS, VOCABULARY, WINDOW

LENGTHS = [1, WINDOW - 1, WINDOW, WINDOW + 1, 4 * WINDOW]
TOLERANCE = 1e-4


def random_ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (1, length))


@torch.no_grad()
def reference_encode(reference, ids: np.ndarray, cache: DynamicCache | None = None) -> DynamicCache:
    cache = cache or DynamicCache(config=reference.config.get_text_config())
    return reference.model.encoder(input_ids=torch.tensor(ids), past_key_values=cache).past_key_values


@torch.no_grad()
def reference_denoise(reference, canvas, cache, previous=None) -> np.ndarray:
    previous = None if previous is None else torch.tensor(previous)
    return reference(
        decoder_input_ids=torch.tensor(canvas), past_key_values=cache, self_conditioning_logits=previous
    ).logits.numpy()


def assert_close(ours: mx.array, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    spread = theirs.max() - theirs.min()
    assert np.abs(np.array(ours) - theirs).max() <= TOLERANCE * spread


def encode_both(model, reference, parts: list[np.ndarray]):
    cache, theirs = model.make_cache(), None
    for part in parts:
        prefill(model, mx.array(part), cache)
        theirs = reference_encode(reference, part, theirs)
    return cache, theirs


@pytest.mark.parametrize("length", LENGTHS)
def test_prefix_keys_and_values(model, reference, length):
    cache, theirs = encode_both(model, reference, [random_ids(length)])
    for ours, layer in zip(cache.layers, theirs.layers, strict=True):
        assert ours.length == layer.keys.shape[2]
        assert_close(ours.keys[:, :, : ours.length], layer.keys.numpy())
        assert_close(ours.values[:, :, : ours.length], layer.values.numpy())


@pytest.mark.parametrize("length", LENGTHS)
def test_denoiser_logits(model, reference, length):
    cache, theirs = encode_both(model, reference, [random_ids(length)])
    canvas = random_ids(CANVAS, seed=1)
    expected = reference_denoise(reference, canvas, theirs)
    assert expected.std() > 1  # far from uniform, or closeness would prove little
    assert_close(model.denoise(mx.array(canvas), cache), expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_denoiser_logits_with_self_conditioning(model, reference, length):
    cache, theirs = encode_both(model, reference, [random_ids(length)])
    canvas = random_ids(CANVAS, seed=1)
    previous = np.random.default_rng(2).normal(0, 4, (1, CANVAS, VOCABULARY)).astype(np.float32)
    expected = reference_denoise(reference, canvas, theirs, previous)
    assert np.abs(expected - reference_denoise(reference, canvas, theirs)).max() > 0.1
    assert_close(model.denoise(mx.array(canvas), cache, mx.array(previous)), expected)


@pytest.mark.parametrize("canvases", [1, 2])
@pytest.mark.parametrize("length", LENGTHS)
def test_denoiser_logits_after_stitched_canvases(model, reference, length, canvases):
    parts = [random_ids(length), *(random_ids(CANVAS, seed=10 + i) for i in range(canvases))]
    cache, theirs = encode_both(model, reference, parts)
    canvas = random_ids(CANVAS, seed=1)
    previous = np.random.default_rng(2).normal(0, 4, (1, CANVAS, VOCABULARY)).astype(np.float32)
    assert_close(model.denoise(mx.array(canvas), cache), reference_denoise(reference, canvas, theirs))
    expected = reference_denoise(reference, canvas, theirs, previous)
    assert_close(model.denoise(mx.array(canvas), cache, mx.array(previous)), expected)


@pytest.mark.parametrize("chunk", [1, 3, WINDOW, 2 * WINDOW + 1])
def test_prefill_in_chunks_is_prefill(model, reference, chunk):
    ids = random_ids(4 * WINDOW)
    cache = model.make_cache()
    prefill(model, mx.array(ids), cache, chunk)
    canvas = random_ids(CANVAS, seed=1)
    assert_close(
        model.denoise(mx.array(canvas), cache), reference_denoise(reference, canvas, reference_encode(reference, ids))
    )


def test_rows_of_a_batch_do_not_mix(model):
    ids = np.concatenate([random_ids(12, seed=3), random_ids(12, seed=4)])
    canvas = np.concatenate([random_ids(CANVAS, seed=5), random_ids(CANVAS, seed=6)])
    both = model.make_cache()
    prefill(model, mx.array(ids), both)
    together = model.denoise(mx.array(canvas), both)
    for row in range(2):
        alone = model.make_cache()
        prefill(model, mx.array(ids[row : row + 1]), alone)
        assert_close(together[row : row + 1], np.array(model.denoise(mx.array(canvas[row : row + 1]), alone)))
