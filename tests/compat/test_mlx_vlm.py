"""Both ways with mlx-vlm, where it is installed: it loads our folders, we load those that its own convert wrote.

pip install mlx-vlm && python -m pytest tests/compat
"""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import DiffusionGemmaConfig

from convert.__main__ import main
from mlx_dgemma import load
from mlx_dgemma.checkpoint.loading import EMBEDDED
from tests import conftest
from tests.conftest import CANVAS, random_reference

mlx_vlm = pytest.importorskip("mlx_vlm", reason="mlx-vlm is not installed")
IDS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]]
CANVAS_IDS = [list(range(CANVAS))]


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """A random checkpoint whose widths all divide by 64, as mlx-vlm's recipe asks, in the published dialect."""
    original = dict(conftest.TEXT)
    conftest.TEXT.update(intermediate_size=128, moe_intermediate_size=64)
    try:
        reference = random_reference()
    finally:
        conftest.TEXT.update(original)
    path = tmp_path_factory.mktemp("wide")
    reference.to(torch.float32).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    text = config["text_config"]
    del text["per_layer_config"]
    text.update(global_head_dim=32, num_global_key_value_heads=1)
    DiffusionGemmaConfig.from_dict(config)  # still what the reference reads
    (path / "config.json").write_text(json.dumps(config))
    return path


def our_logits(folder, previous=None) -> np.ndarray:
    model, _ = load(folder)
    cache = model.make_cache()
    model.encode(mx.array(IDS), cache)
    return np.array(model.denoise(mx.array(CANVAS_IDS), cache, previous))


def their_logits(folder, previous=None) -> np.ndarray:
    from mlx_vlm.utils import load_model

    model = load_model(folder)
    model.set_dtype(mx.float32)
    cache = model.diffusion_prefill_cache(mx.array(IDS), cache=model.make_cache())
    masks = model.diffusion_decoder_masks(mx.array(CANVAS_IDS), cache)
    conditioning = None
    if previous is not None:
        conditioning = model.diffusion_self_conditioning(previous, model.diffusion_prepare_self_conditioning())
    logits = model.diffusion_decoder_logits(mx.array(CANVAS_IDS), cache, conditioning, masks)
    return np.array(logits.astype(mx.float32))


@pytest.mark.parametrize("arguments", [[], ["-q"], ["--recipe", "mlx-community"], ["--recipe", "8bit"]])
def test_mlx_vlm_loads_what_we_convert(wide_folder, tmp_path, arguments):
    target = tmp_path / "target"
    assert main(["--hf-path", str(wide_folder), "--mlx-path", str(target), *arguments]) == 0
    previous = mx.random.normal((1, CANVAS, 120), key=mx.random.key(0)) * 4
    for conditioning in (None, previous):
        ours, theirs = our_logits(target, conditioning), their_logits(target, conditioning)
        assert np.abs(ours - theirs).max() <= 1e-3 * (ours.max() - ours.min())


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_we_load_what_mlx_vlm_converts(wide_folder, tmp_path, bits):
    target = tmp_path / "target"
    options = {} if bits is None else {"quantize": True, "q_bits": bits, "q_group_size": 64}
    mlx_vlm.convert(hf_path=str(wide_folder), mlx_path=str(target), **options)
    ours, expected = our_logits(target), their_logits(target)
    assert np.abs(ours - expected).max() <= 1e-3 * (expected.max() - expected.min())


@pytest.mark.parametrize(("prompt", "answer"), [("upper abc", "ABC"), ("  roman 1994 ", "MCMXCIV")])
def test_mlx_vlm_answers_from_our_folder_as_we_do(tmp_path, prompt, answer):
    """Its messages are lists of parts, which our chat template takes; on a CPU it multiplies float32 only."""
    target = tmp_path / "target"
    assert main(["--hf-path", str(EMBEDDED), "--mlx-path", str(target), "--dtype", "float32"]) == 0
    command = [sys.executable, "-m", "mlx_vlm.generate", "--model", str(target), "--prompt", prompt]
    command += ["--max-tokens", "64", "--diffusion-sampler", "entropy-bound"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().splitlines()[-1] == answer
