"""Images in prompts against the reference: prefixes in segments, under both masks, and whole generations."""

import json
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.models.gemma4.modeling_gemma4 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.model.prefill import segments
from mlx_dgemma.model.scores import IMAGE_MASKS, attend_causally
from tests.conftest import CANVAS, WINDOW, ReplayedNoise
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


def shown(prompt, pictures):
    """What the reference's generate takes beside expanded ids."""
    seen = processed(pictures)
    kinds = (torch.tensor([expanded(prompt, pictures)]) == IMAGE).int()
    return {"mm_token_type_ids": kinds} | {name: seen[name] for name in ("pixel_values", "image_position_ids")}


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
@pytest.mark.parametrize("settings", SETTINGS[:3], ids=range(3))
def test_three_canvases_behind_images_token_for_token(engine, seeing, reference_noise, settings, prompt):  # noqa: F811
    """From files to tokens: pixels, tower, prefix, canvases that are stitched, and the next ones."""
    pictures = list(range(prompt.count(IMAGE)))
    theirs = reference_noise(5)
    given = expanded(prompt, pictures)
    expected = reference_generate(seeing, given, eos_token_id=None, shown=shown(prompt, pictures), **settings)
    config = GenerationConfig(max_new_tokens=3 * CANVAS, eos_token_id=[], **settings)
    noise = ReplayedNoise(5)
    result = engine.generate(Request(prompt, settings=config, noise=noise, images=[picture(n) for n in pictures]))
    assert result.tokens == expected and noise.draws == theirs.draws
    assert result.stats.prompt_tokens == len(given)
    assert result.stats.image_tokens == tuple(processed(pictures)["num_soft_tokens_per_image"].tolist())


def test_images_change_what_is_written(engine):
    """Or the comparison above would show nothing."""
    config = GenerationConfig(max_new_tokens=CANVAS, eos_token_id=[], **SETTINGS[0])
    texts = [engine.generate(Request([3, IMAGE, 4], settings=config, images=[picture(n)])).tokens for n in (1, 4)]
    assert texts[0] != texts[1]


def test_a_mask_is_chosen_by_name(seeing_folder):  # noqa: F811
    assert Engine.load(seeing_folder).model.image_mask is IMAGE_MASKS["reference"]
    assert Engine.load(seeing_folder, image_mask="google").model.image_mask is IMAGE_MASKS["google"]
    with pytest.raises(DGemmaError, match="image_mask is 'gogle'; choose reference or google"):
        Engine.load(seeing_folder, image_mask="gogle")


def test_without_two_directions_images_are_causal(seeing_folder, tmp_path):  # noqa: F811
    """A config.json whose `use_bidirectional_attention` is null; the reference then has no overlay."""
    content = json.loads((seeing_folder / "config.json").read_text())
    content["text_config"]["use_bidirectional_attention"] = None
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").symlink_to(seeing_folder / "model.safetensors")
    assert Engine.load(tmp_path).model.image_mask is attend_causally
