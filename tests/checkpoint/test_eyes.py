"""A vision tower: read at the first image, checked at once, and no hindrance to text where it cannot be used."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mlx_dgemma import DGemmaError, Engine, load
from tests import eyes
from tests.checkpoint.test_loading import edit_config, logits, one_line
from tests.eyes import GRIDS, PROJECTION, TOWER, VISION, features, picture

UP = f"{TOWER}.encoder.layers.0.mlp.up_proj.linear"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return eyes.save(tmp_path_factory.mktemp("seeing"))


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(folder, change) -> None:
    tensors = load_file(folder / "vision.safetensors")
    change(tensors)
    save_file(tensors, folder / "vision.safetensors")


def blindness(folder) -> str:
    """Why a model that reads and writes as ever does not see."""
    model, _ = load(folder)
    assert np.isfinite(logits(model)).all()
    with pytest.raises(DGemmaError) as error:
        model.require_eyes()
    assert model.eyes is None
    return one_line(error)


@torch.no_grad()
def test_what_is_seen_is_what_the_reference_sees(saved):
    model, _ = load(saved)
    for grid in GRIDS:
        places = torch.tensor([[(x, y) for y in range(grid[0]) for x in range(grid[1])]])
        pixels = torch.tensor(picture(grid)[None])
        theirs = eyes.reference().model.encoder.get_image_features(pixels, places).pooler_output
        wanted = theirs.numpy().reshape(1, -1, 64)
        got = features(model, grid)
        assert got.shape == wanted.shape == (1, grid[0] * grid[1] // 9, 64)
        assert wanted.std() > 0.1 and np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_nothing_is_read_before_the_first_image(copied):
    model, _ = load(copied)
    assert not model.eyes.is_loaded and model.eyes.nbytes == 0
    unread = features(load(copied)[0])
    edit(copied, lambda t: t.update({f"{PROJECTION}.weight": 2 * t[f"{PROJECTION}.weight"]}))
    first = features(model)
    np.testing.assert_allclose(first, 2 * unread, rtol=1e-6)  # what the file holds now
    assert model.eyes.nbytes == sum(t.nbytes for t in load_file(copied / "vision.safetensors").values())
    (copied / "vision.safetensors").unlink()
    assert np.array_equal(features(model), first)


def test_a_tower_that_is_gone_by_then_is_one_line(copied):
    model, _ = load(copied)
    (copied / "vision.safetensors").unlink()
    with pytest.raises(DGemmaError, match="is missing from the checkpoint") as error:
        features(model)
    one_line(error)
    assert np.isfinite(logits(model)).all()


def test_the_text_model_is_the_same_with_and_without_a_tower(saved, copied):
    (copied / "vision.safetensors").unlink()
    (seeing, _), (blind, _) = load(saved), load(copied)
    features(seeing)
    assert seeing.nbytes == blind.nbytes and seeing.tensors().keys() == blind.tensors().keys()
    assert not any("vision" in name for name in seeing.tensors())
    assert np.array_equal(logits(seeing), logits(blind))


def test_another_thread_may_see_first(saved):
    model, _ = load(saved)
    with ThreadPoolExecutor(1) as worker:
        elsewhere = worker.submit(lambda: [features(model), features(model)]).result()
    assert np.array_equal(elsewhere[0], features(load(saved)[0])) and np.array_equal(*elsewhere)


def test_a_folder_without_a_tower(copied):
    (copied / "vision.safetensors").unlink()
    assert "has no vision tower (no tensor is named model.encoder.vision_tower)" in blindness(copied)


def test_a_tower_without_a_description(copied):
    edit_config(copied, vision_config=None)
    assert "has no vision tower (config.json has no vision_config)" in blindness(copied)


def test_a_vocabulary_without_the_image_token(copied):
    edit_config(copied, image_token_id=258_880)
    expected = "vocabulary has no image token (image_token_id is 258880, vocab_size 120); images need a checkpoint"
    assert expected in blindness(copied)


def test_the_embedded_checkpoint_does_not_see():
    model, _ = load()
    assert model.eyes is None and "has no image token" in model.no_eyes


def test_an_unsupported_tower_is_refused_by_name_when_an_image_comes(copied):
    """A smaller Gemma's tower clips, and has tensors for it."""
    clips = {
        f"{TOWER}.encoder.layers.0.mlp.up_proj.{side}_{end}": np.array(1, np.float32)
        for side in ("input", "output")
        for end in ("min", "max")
    }
    edit(copied, lambda t: t.update(clips))
    with pytest.raises(DGemmaError, match=r"unexpected tensor .*up_proj\.input_max"):
        load(copied)
    edit_config(copied, vision_config={**VISION, "use_clipped_linears": True})
    complaint = blindness(copied)
    assert complaint.startswith("this checkpoint's vision tower cannot be used: vision_config.use_clipped_linears is")


def test_a_missing_vision_tensor_is_named_at_once(copied):
    edit(copied, lambda t: t.pop(f"{TOWER}.std_bias"))
    with pytest.raises(DGemmaError) as error:
        load(copied)
    assert f"tensor {TOWER}.std_bias (64,) is missing" in one_line(error)


def test_a_misshapen_vision_tensor_is_named_at_once(copied):
    name = f"{TOWER}.encoder.layers.1.mlp.down_proj.linear.weight"
    edit(copied, lambda t: t.update({name: t[name].T.copy()}))
    with pytest.raises(DGemmaError) as error:
        load(copied)
    assert one_line(error) == (f"vision.safetensors: tensor {name} has shape (80, 64), config.json asks for (64, 80)")


def test_a_vision_tensor_of_another_type_is_named_at_once(copied):
    edit(copied, lambda t: t.update({f"{TOWER}.std_scale": np.zeros(64, np.int64)}))
    with pytest.raises(DGemmaError, match=r"std_scale is I64, which is not supported"):
        load(copied)


def test_vestiges_are_dropped(saved, copied):
    edit(copied, lambda t: t.update({"model.encoder.embed_vision.embedding.weight": np.zeros((5, 64), np.float32)}))
    assert np.array_equal(features(load(copied)[0]), features(load(saved)[0]))


def quantized_in(folder, path: str, bits: int) -> np.ndarray:
    """Quantizes one matrix in the file; returns what is seen with the same numbers unquantized."""
    packed, scales, biases = mx.quantize(mx.array(load_file(folder / "vision.safetensors")[f"{path}.weight"]), 32, bits)
    dense = np.array(mx.dequantize(packed, scales, biases, 32, bits))
    edit(folder, lambda t: t.update({f"{path}.weight": dense}))
    wanted = features(load(folder)[0])
    parts = {"weight": np.array(packed), "scales": np.array(scales), "biases": np.array(biases)}
    edit(folder, lambda t: t.update({f"{path}.{part}": array for part, array in parts.items()}))
    return wanted


@pytest.mark.parametrize(
    ("path", "bits", "own"),
    [
        (PROJECTION, 4, {}),  # mlx-community's 4-bit files
        (PROJECTION, 8, {PROJECTION: {"group_size": 32, "bits": 8}}),
        (UP, 8, {UP: {"group_size": 32, "bits": 8}}),
    ],
)
def test_quantized_matrices(copied, path, bits, own):
    wanted = quantized_in(copied, path, bits)
    edit_config(copied, quantization={"group_size": 32, "bits": 4, "mode": "affine", **own})
    model, _ = load(copied)
    assert np.abs(features(model) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert model.eyes.nbytes == sum(t.nbytes for t in load_file(copied / "vision.safetensors").values())


@pytest.mark.parametrize("loads", [load, Engine.load])
def test_the_towers_type_is_checked_at_once(saved, loads):
    with pytest.raises(DGemmaError, match="needs a GPU") as error:
        loads(saved, vision_dtype=mx.bfloat16)
    one_line(error)
    with pytest.raises(DGemmaError, match=r"int32 is not supported, use bfloat16"):
        loads(saved, vision_dtype=mx.int32)
