"""The objective against the reference: losses and every gradient; and what memory is saved by changes nothing."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from mlx_dgemma.checkpoint.loading import load_model
from mlx_dgemma.lora import objective
from mlx_dgemma.lora.objective import Lesson, corrupted, losses
from mlx_dgemma.model.config import ModelConfig
from tests.conftest import CANVAS, VOCABULARY, WINDOW, random_reference

PREFIX, BEHIND = 24, 9  # tokens before the canvas, three windows of them, and behind it


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The reference and ours, unfused, every parameter to be trained."""
    reference, path = random_reference(), tmp_path_factory.mktemp("objective")
    reference.save_pretrained(path)
    model = load_model(path, ModelConfig.from_file(path / "config.json"), fuse=False)
    model.train()
    model.unfreeze()
    return reference, model


@pytest.fixture(scope="module")
def drawn():
    """Ids of a text, and a canvas in it that was corrupted."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, VOCABULARY, (1, PREFIX + CANVAS + BEHIND))
    clean = ids[:, PREFIX : PREFIX + CANVAS]
    return ids, np.where(rng.random(clean.shape) < 0.5, rng.integers(0, VOCABULARY, clean.shape), clean)


def lesson(ids, counted=None, targets=None):
    counted = np.ones(CANVAS, bool) if counted is None else counted
    targets = np.ones(ids.shape[1], bool) if targets is None else targets
    return Lesson(mx.array(ids.astype(np.int32)), mx.array(targets), PREFIX, mx.array(counted))


def reference_losses(reference, ids, noisy, conditioned):
    """As its own classes compute them: the encoder reads the whole text, then the prefix again into a cache."""
    text, canvas = torch.tensor(ids), torch.tensor(noisy)
    cap = reference.final_logit_softcapping
    hidden = reference.model.encoder(input_ids=text).last_hidden_state
    causal = cap * torch.tanh(reference.lm_head(hidden[:, :-1]) / cap)
    encoder = cross_entropy(causal.flatten(0, 1), text[:, 1:].flatten())
    cache = DynamicCache(config=reference.config.get_text_config())
    reference.model.encoder(input_ids=text[:, :PREFIX], cache=cache)
    previous = None
    if conditioned:
        with torch.no_grad():
            previous = reference(decoder_input_ids=canvas, cache=cache).logits
    logits = reference(decoder_input_ids=canvas, cache=cache, self_conditioning_logits=previous).logits
    clean = text[:, PREFIX : PREFIX + CANVAS]
    return cross_entropy(logits.flatten(0, 1), clean.flatten()), encoder


def value_and_gradients(model, own, noisy, **options):
    """Both losses and the gradients of their sum, by name."""

    def total(module):
        found = losses(module, own, mx.array(noisy.astype(np.int32)), **options)
        return found.denoiser + found.encoder, (found.denoiser, found.encoder)

    (_, parts), gradients = nn.value_and_grad(model, total)(model)
    mx.eval(parts, gradients)
    return [part.item() for part in parts], dict(tree_flatten(gradients))


@pytest.mark.parametrize("conditioned", [False, True])
def test_losses_and_every_gradient_are_the_references(pair, drawn, conditioned):
    (reference, model), (ids, noisy) = pair, drawn
    theirs = reference_losses(reference, ids, noisy, conditioned)
    reference.zero_grad()
    sum(theirs).backward()
    ours, gradients = value_and_gradients(model, lesson(ids), noisy, conditioned=conditioned)
    assert ours == pytest.approx([own.item() for own in theirs], rel=1e-5)
    compared = 0
    for name, parameter in reference.named_parameters():
        named = name.replace("model.encoder.language_model.", "model.decoder.")
        named = name if "layer_scalar" in name and "encoder" in name else named
        own = gradients.get(named, gradients.get(f"{named}.weight"))
        if parameter.grad is None or "vision" in name:
            continue
        assert own is not None, name
        wanted = parameter.grad.numpy()
        far = np.abs(np.array(own) - wanted).max() / (np.abs(wanted).max() + 1e-12)
        assert far < 1e-4, (name, far)
        compared += 1
    assert compared >= 100


@pytest.mark.parametrize("conditioned", [False, True])
def test_what_is_computed_again_changes_nothing(pair, drawn, conditioned):
    """Keys and values pass into the denoiser's part of the graph, whose gradient the encoder gets all the same."""
    (_, model), (ids, noisy) = pair, drawn
    kept = value_and_gradients(model, lesson(ids), noisy, conditioned=conditioned)
    again = value_and_gradients(model, lesson(ids), noisy, conditioned=conditioned, again=True)
    assert kept[0] == again[0]
    for name, own in kept[1].items():
        assert np.array_equal(np.array(own), np.array(again[1][name])), name


def test_slices_of_logits_change_nothing(pair, drawn, monkeypatch):
    (_, model), (ids, noisy) = pair, drawn
    whole = value_and_gradients(model, lesson(ids), noisy, conditioned=True)
    monkeypatch.setattr(objective, "SLICE", 5)
    sliced = value_and_gradients(model, lesson(ids), noisy, conditioned=True)
    assert sliced[0] == pytest.approx(whole[0], rel=1e-6)
    for name, own in whole[1].items():
        far = np.abs(np.array(own) - np.array(sliced[1][name])).max()
        assert far <= 2e-5 * np.abs(np.array(own)).max() + 1e-6, (name, far)


def test_a_canvas_sees_what_the_samplers_cache_shows_it(pair, drawn):
    """The denoiser's loss by the product's own cache, which keeps a window's last tokens before the canvas."""
    (_, model), (ids, noisy) = pair, drawn
    own = lesson(ids)
    cache = model.make_cache()
    model.encode(own.ids[:, :PREFIX], cache)
    assert WINDOW < PREFIX
    logits = model.denoise(mx.array(noisy.astype(np.int32)), cache)
    wanted = nn.losses.cross_entropy(logits, own.canvas).mean().item()
    found = losses(model, own, mx.array(noisy.astype(np.int32)), conditioned=False)
    assert found.denoiser.item() == pytest.approx(wanted, rel=1e-6)


def test_only_what_is_counted_counts(pair, drawn):
    (_, model), (ids, noisy) = pair, drawn
    counted, targets = np.arange(CANVAS) < 5, np.arange(ids.shape[1]) >= PREFIX
    found = losses(model, lesson(ids, counted, targets), mx.array(noisy.astype(np.int32)), conditioned=False)
    cache = model.make_cache()
    causal = model.logits(model.encode(mx.array(ids.astype(np.int32)), cache))[:, :-1]
    nats = np.array(nn.losses.cross_entropy(causal, mx.array(ids[:, 1:].astype(np.int32))))[0]
    assert found.encoder.item() == pytest.approx(nats[PREFIX - 1 :].mean(), rel=1e-5)
    all_ = losses(model, lesson(ids), mx.array(noisy.astype(np.int32)), conditioned=False)
    assert found.denoiser.item() != pytest.approx(all_.denoiser.item(), rel=1e-3)


def test_corruption_is_uniform_and_seeded():
    canvas, key = mx.full((400, 64), 7), mx.random.key(1)
    noisy = np.array(corrupted(canvas, 1000, key))
    shares = (noisy != 7).mean(axis=1)
    assert shares.min() < 0.05 and shares.max() > 0.95 and abs(shares.mean() - 0.5) < 0.05
    changed = noisy[noisy != 7]
    assert changed.min() < 10 and changed.max() > 990 and abs(changed.mean() - 499.5) < 10
    assert np.array_equal(noisy, np.array(corrupted(canvas, 1000, key)))
    fixed = np.array(corrupted(canvas, 1000, key, mx.full((400, 1), 0.3)))
    assert abs((fixed != 7).mean() - 0.3) < 0.01
