"""The vision tower in a conversion: checked against config.json, and carried along as it is."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_dgemma import DGemmaError, load
from tests import eyes
from tests.checkpoint.test_loading import edit_config, edit_tensors
from tests.convert.conftest import convert, failing
from tests.eyes import PROJECTION, TOWER, VISION, features

LINEAR = f"{TOWER}.encoder.layers.1.mlp.down_proj.linear.weight"
VESTIGE = "model.encoder.embed_vision.embedding.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random checkpoint that sees, in one file."""
    folder = eyes.save(tmp_path_factory.mktemp("seeing"))
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "vision.safetensors")
    (folder / "vision.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def source(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "source")


@pytest.mark.parametrize("options", [(), ("-q", "--q-group-size", "32"), ("--dtype", "float16")])
def test_what_is_seen_stays_what_it_was(source, to_target, options):
    got, wanted = (features(load(folder)[0]) for folder in (to_target(*options, source=source), source))
    assert np.abs(got - wanted).max() <= (0.02 if "float16" in options else 0) * np.abs(wanted).max()


def test_a_misshapen_tensor_is_named_with_both_shapes(capsys, source, tmp_path):
    edit_tensors(source, lambda t: t.update({LINEAR: t[LINEAR].T.copy()}))
    complaint = failing(capsys, source, tmp_path / "t")
    assert f"tensor {LINEAR} has shape (80, 64), config.json asks for (64, 80)" in complaint


def test_a_missing_tensor_is_named(capsys, source, tmp_path):
    edit_tensors(source, lambda t: t.pop(f"{TOWER}.std_scale"))
    assert f"tensor {TOWER}.std_scale (64,) is missing" in failing(capsys, source, tmp_path / "t")


def test_an_unexpected_tensor_is_named(capsys, source, tmp_path):
    edit_tensors(source, lambda t: t.update({f"{TOWER}.surprise": np.zeros(3, np.float32)}))
    assert f"tensor {TOWER}.surprise is unexpected" in failing(capsys, source, tmp_path / "t")


def test_a_source_without_a_tower_becomes_a_target_without(source, to_target):
    edit_tensors(source, lambda t: [t.pop(name) for name in list(t) if "vision" in name])
    with pytest.raises(DGemmaError, match="has no vision tower"):
        load(to_target(source=source))[0].require_eyes()


def test_a_tower_that_cannot_be_used_comes_along_with_a_note(capsys, source, to_target, tmp_path):
    """A smaller Gemma's clips; whoever can use it finds all of it."""
    clip = f"{TOWER}.encoder.layers.0.mlp.up_proj.input_max"
    edit_tensors(source, lambda t: t.update({clip: np.array([1], np.float32)}))
    assert f"tensor {clip} is unexpected" in failing(capsys, source, tmp_path / "t")
    edit_config(source, vision_config={**VISION, "use_clipped_linears": True})
    _, out, _ = convert(capsys, "--hf-path", source, "--dry-run")
    told = " ".join(out.split())
    assert "note: the vision tower is copied unchecked, as it cannot be used: vision_config.use_clipped_linears" in told
    target = to_target(source=source)
    assert clip in mx.load(str(next(target.glob("*.safetensors"))))
    with pytest.raises(DGemmaError, match="use_clipped_linears is True"):
        load(target)[0].require_eyes()


@pytest.fixture
def quantized(source, to_target, tmp_path):
    """A source whose projector has 8 bits and whose experts have 4."""
    options = ("--recipe", "experts-4bit", "--q-group-size", "32", "--override", "embedding_projection=8:32")
    return to_target("-q", *options, source=source).rename(tmp_path / "quantized")


def test_a_quantized_projector_converts(quantized, to_target):
    assert json.loads((quantized / "config.json").read_text())["quantization"][PROJECTION]["bits"] == 8
    wanted = features(load(quantized)[0])
    kept = to_target("-q", "--q-group-size", "32", source=quantized)
    assert f"{PROJECTION}.scales" in mx.load(str(next(kept.glob("*.safetensors"))))
    assert np.array_equal(features(load(kept)[0]), wanted)
    dense = to_target("--dequantize", "--force", source=quantized)
    assert f"{PROJECTION}.scales" not in mx.load(str(next(dense.glob("*.safetensors"))))
    assert np.abs(features(load(dense)[0]) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_quantized_projector_of_another_size_is_named(capsys, quantized, tmp_path):
    (weights,) = quantized.glob("*.safetensors")
    tensors = load_file(weights)
    halves = {name: tensors[name][:32] for name in tensors if name.startswith(PROJECTION)}
    save_file(tensors | halves, weights)
    complaint = failing(capsys, quantized, tmp_path / "t", "--dequantize")
    assert f"{PROJECTION}.weight has shape (32, 64), config.json asks for (64, 64)" in complaint


def test_vestiges_are_dropped_and_counted(capsys, source, to_target):
    edit_tensors(source, lambda t: t.update({VESTIGE: np.zeros((3, 64), np.float32)}))
    _, out, _ = convert(capsys, "--hf-path", source, "--dry-run")
    assert "dropped: 1 tensor, vestigial, nothing reads it" in out
    assert np.isfinite(features(load(to_target(source=source))[0])).all()
