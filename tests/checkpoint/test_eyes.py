"""A vision tower: read at the first image, checked at once, and no hindrance to text where it cannot be used."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from mlx_dgemma import DGemmaError, Engine, load
from tests.checkpoint.test_loading import edit_config, logits, one_line
from tests.conftest import CANVAS, TEXT

SIZES = {
    "model_type": "gemma4_vision", "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "patch_size": 4, "position_embedding_size": 30,
    "standardize": True, "initializer_range": 0.2,
}  # fmt: skip
TOWER, PROJECTION = "model.encoder.vision_tower", "model.encoder.embed_vision.embedding_projection"
GRIDS = ((6, 9), (12, 3))


@pytest.fixture(scope="module")
def reference() -> DiffusionGemmaForBlockDiffusion:
    """A random model that sees."""
    torch.manual_seed(1)
    tokens = {"image_token_id": 117, "boi_token_id": 118, "eoi_token_id": 119}
    config = DiffusionGemmaConfig(text_config=TEXT, vision_config=SIZES, canvas_length=CANVAS, **tokens)
    model = DiffusionGemmaForBlockDiffusion._from_config(config, attn_implementation="eager").eval()
    tower = model.model.encoder.vision_tower
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
        tower.patch_embedder.position_embedding_table.normal_()
        tower.std_bias.normal_()
        tower.std_scale.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def saved(reference, tmp_path_factory):
    """As transformers saves it, with the vision tensors in a file of their own."""
    folder = tmp_path_factory.mktemp("seeing")
    reference.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    vision = {name: tensors.pop(name) for name in list(tensors) if "vision" in name}
    save_file(tensors, folder / "model.safetensors")
    save_file(vision, folder / "vision.safetensors")
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(folder, change) -> None:
    tensors = load_file(folder / "vision.safetensors")
    change(tensors)
    save_file(tensors, folder / "vision.safetensors")


def picture(grid: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(grid).random((grid[0] * grid[1], 48), np.float32)


def features(model, grid=GRIDS[0]) -> np.ndarray:
    return np.array(model.require_eyes().see(mx.array(picture(grid)), grid))


def blindness(folder) -> str:
    """Why a model that reads and writes as ever does not see."""
    model, _ = load(folder)
    assert np.isfinite(logits(model)).all()
    with pytest.raises(DGemmaError) as error:
        model.require_eyes()
    assert model.eyes is None
    return one_line(error)


@torch.no_grad()
def test_what_is_seen_is_what_the_reference_sees(reference, saved):
    model, _ = load(saved)
    for grid in GRIDS:
        places = torch.tensor([[(x, y) for y in range(grid[0]) for x in range(grid[1])]])
        theirs = reference.model.encoder.get_image_features(torch.tensor(picture(grid)[None]), places).pooler_output
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
    edit_config(copied, vision_config={**SIZES, "use_clipped_linears": True})
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


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_projector(copied, bits):
    """As mlx-community's 4-bit files have it; at 8 bits by an override of its own."""
    weight = mx.array(load_file(copied / "vision.safetensors")[f"{PROJECTION}.weight"])
    packed, scales, biases = mx.quantize(weight, 32, bits)
    dense = np.array(mx.dequantize(packed, scales, biases, 32, bits))
    edit(copied, lambda t: t.update({f"{PROJECTION}.weight": dense}))
    wanted = features(load(copied)[0])
    parts = {"weight": np.array(packed), "scales": np.array(scales), "biases": np.array(biases)}
    edit(copied, lambda t: t.update({f"{PROJECTION}.{part}": array for part, array in parts.items()}))
    own = {PROJECTION: {"group_size": 32, "bits": 8}} if bits == 8 else {}
    edit_config(copied, quantization={"group_size": 32, "bits": 4, "mode": "affine", **own})
    model, _ = load(copied)
    got = features(model)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert model.eyes.nbytes == sum(t.nbytes for t in load_file(copied / "vision.safetensors").values())


@pytest.mark.parametrize("loads", [load, Engine.load])
def test_the_towers_type_is_checked_at_once(saved, loads):
    with pytest.raises(DGemmaError, match="needs a GPU") as error:
        loads(saved, vision_dtype=mx.bfloat16)
    one_line(error)
    with pytest.raises(DGemmaError, match=r"int32 is not supported, use bfloat16"):
        loads(saved, vision_dtype=mx.int32)
