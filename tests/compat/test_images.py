"""Eyes both ways with mlx-vlm, where it is installed: one folder, two towers, the same soft tokens.

pip install mlx-vlm && python -m pytest tests/compat
"""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from convert.__main__ import main
from mlx_dgemma import load
from mlx_dgemma.text.images import read_picture
from tests.seeing import BUDGET, PATCH, picture, seeing, seeing_folder  # noqa: F401

pytest.importorskip("mlx_vlm", reason="mlx-vlm is not installed")


@pytest.fixture(scope="module")
def published(seeing_folder, tmp_path_factory):  # noqa: F811
    """The checkpoint that sees, in the dialect that every reader knows."""
    path = tmp_path_factory.mktemp("published")
    content = json.loads((seeing_folder / "config.json").read_text())
    text = content["text_config"]
    del text["per_layer_config"]
    text.update(global_head_dim=32, num_global_key_value_heads=1)
    (path / "config.json").write_text(json.dumps(content))
    (path / "model.safetensors").symlink_to(seeing_folder / "model.safetensors")
    return path


def shown(number):
    return read_picture(picture(number), "a picture", patch=PATCH, pool=3, budget=BUDGET)


def our_features(folder, number) -> np.ndarray:
    own = shown(number)
    return np.array(load(folder)[0].require_eyes().see(mx.array(own.patches()), own.grid)[0])


def their_features(folder, number) -> np.ndarray:
    from mlx_vlm.utils import load_model

    model = load_model(folder)
    model.set_dtype(mx.float32)
    pixels = mx.array(shown(number).pixels.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    return np.array(model.model.encoder.get_image_features(pixels)[0].astype(mx.float32))


def assert_same(folder):
    for number in range(3):
        ours, theirs = our_features(folder, number), their_features(folder, number)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


def test_mlx_vlm_sees_with_the_published_folder(published):
    assert_same(published)


@pytest.mark.parametrize("arguments", [[], ["-q", "--q-group-size", "32"]])
def test_mlx_vlm_sees_with_what_we_convert(published, tmp_path, arguments):
    target = tmp_path / "target"
    assert main(["--hf-path", str(published), "--mlx-path", str(target), *arguments]) == 0
    assert_same(target)


def test_we_see_with_what_mlx_vlm_converts(published, tmp_path):
    target = tmp_path / "target"
    command = [sys.executable, "-m", "mlx_vlm.convert", "--hf-path", str(published), "--mlx-path", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(target)
