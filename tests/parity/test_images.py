"""Images in prompts against the reference: prefixes in segments, under both masks, and whole generations."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.models.gemma4.modeling_gemma4 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

from mlx_dgemma import Engine
from mlx_dgemma.model.prefill import segments
from mlx_dgemma.model.scores import IMAGE_MASKS
from tests.conftest import WINDOW
from tests.parity.test_generation import SETTINGS, reference_generate, reference_noise  # noqa: F401
from tests.seeing import IMAGE, expanded, picture, processed, seeing, seeing_folder  # noqa: F401

# Prompts with IMAGE where a picture stands: first, last but one, next to each other, behind text around the window.
PROMPTS = (
    [IMAGE, 5, 6],
    [3, 4, IMAGE, 7],
    [*range(3, 3 + WINDOW), IMAGE, 8, 9, IMAGE, 4],
    [*range(3, 3 + 2 * WINDOW + 1), IMAGE, IMAGE, IMAGE, *range(20, 32)],
)


@pytest.fixture(scope="module")
def engine(seeing_folder):  # noqa: F811
    return Engine.load(seeing_folder)


@torch.no_grad()
def reference_states(model, prompt, pictures, mask):
    """The reference's hidden states and cache of a whole prompt, in one pass."""
    ids = torch.tensor([expanded(prompt, pictures)])
    kinds, length = (ids == IMAGE).int(), ids.shape[1]
    config, cache = model.config, DynamicCache(config=model.config.get_text_config())
    known = dict(
        inputs_embeds=torch.empty(1, length, 0), attention_mask=torch.ones(1, length).bool(), cache=cache,
        position_ids=torch.arange(length)[None],
    )  # fmt: skip
    if mask == "reference":
        masks = model.model.encoder.create_masks_for_generate(config=config, mm_token_type_ids=kinds, **known)
    else:
        blocks = get_block_sequence_ids_for_mask(kinds, "cpu")
        masks = create_masks_for_vision_model(config.get_text_config(), *known.values(), blocks)
    seen = processed(pictures)
    out = model.model.encoder(
        input_ids=ids, attention_mask=masks, cache=cache, position_ids=known["position_ids"], mm_token_type_ids=kinds,
        pixel_values=seen["pixel_values"], image_position_ids=seen["image_position_ids"],
    )  # fmt: skip
    return out.last_hidden_state[0].numpy(), cache


@torch.no_grad()
def reference_features(model, pictures):
    seen = processed(pictures)
    features = model.model.encoder.get_image_features(seen["pixel_values"], seen["image_position_ids"]).pooler_output
    return torch.split(features, seen["num_soft_tokens_per_image"].tolist())


def named(prompt, pictures):
    """The prompt's ids, with −1, −2 … at the positions of its images."""
    ids, name, before = expanded(prompt, pictures), 0, None
    for i, token in enumerate(ids):
        if token == IMAGE:
            name -= before != IMAGE
            ids[i] = name
        before = token
    return ids


@pytest.mark.parametrize("mask", IMAGE_MASKS)
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_segments_are_one_pass(engine, seeing, prompt, mask, monkeypatch):  # noqa: F811
    """The reference's own features go in, so that only the prefill is compared; a chunk cuts texts."""
    pictures = list(range(prompt.count(IMAGE)))
    expected, theirs = reference_states(seeing, prompt, pictures, mask)
    features = reference_features(seeing, pictures)
    sights = {-1 - i: partial(mx.array, own.numpy()[None]) for i, own in enumerate(features)}
    model, states = engine.model, []
    monkeypatch.setattr(model, "image_mask", IMAGE_MASKS[mask])
    monkeypatch.setattr("mlx_dgemma.model.cpu.PREFILL_CHUNK", 7)
    cache = model.make_cache()
    for _ in segments(model, named(prompt, pictures), sights, cache, read=lambda h: states.append(np.array(h[0]))):
        pass
    got = np.concatenate(states)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    assert cache.length == len(expected) and len(states) > 2 * len(pictures)
    for layer, own in zip(theirs.layers, cache.layers, strict=True):
        keys = layer.keys[0, :, -own.length :].numpy()
        np.testing.assert_allclose(np.array(own.keys[0, :, : own.length]), keys, atol=1e-4 * np.abs(keys).max())


def test_the_two_masks_differ(engine, seeing, monkeypatch):  # noqa: F811
    """Or the tests above would show nothing."""
    one, two = (reference_states(seeing, PROMPTS[1], [0], mask)[0] for mask in IMAGE_MASKS)
    assert np.abs(one - two).max() > 0.01 * np.abs(one).max()
