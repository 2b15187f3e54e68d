"""Loading: both layouts, dtypes, memory, and every way a checkpoint can be broken, each told in one line."""

import json
import shutil
import struct

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_dgemma import DGemmaError, load
from mlx_dgemma.checkpoint.headers import read_headers
from mlx_dgemma.checkpoint.loading import load_model
from mlx_dgemma.model.attention import Place
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.layers import GatedMLP
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.model.scores import attend_causally
from tests.conftest import CANVAS, random_reference

LAYER = "model.decoder.layers.1"


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the random checkpoint to break."""
    return shutil.copytree(folder, tmp_path / "copy")


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def logits(model) -> np.ndarray:
    cache = model.make_cache()
    prefill(model, mx.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]]), cache)
    return np.array(model.denoise(mx.array([list(range(CANVAS))]), cache))


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_sharded_checkpoints_load(reference, model, tmp_path):
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert np.array_equal(logits(load(tmp_path)[0]), logits(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoints_run_in_float32_on_the_cpu(dtype, tmp_path):
    import torch

    random_reference().to(getattr(torch, dtype)).save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path)
    assert tokenizer is None
    assert {p.dtype for _, p in tree_flatten(model.parameters())} == {mx.float32}


def test_half_precision_on_the_cpu_is_refused(folder):
    with pytest.raises(DGemmaError) as error:
        load(folder, dtype=mx.bfloat16)
    assert "use float32" in one_line(error)


def test_loading_never_holds_the_checkpoint_twice(tmp_path):
    """bfloat16 to float32: at most the result, plus twice the largest tensor."""
    config = ModelConfig.from_file(write_wide_checkpoint(tmp_path))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_model(tmp_path, config)
    parameters = [p for _, p in tree_flatten(model.parameters())]
    total, largest = sum(p.nbytes for p in parameters), max(p.nbytes for p in parameters)
    assert mx.get_peak_memory() - before < total + 2 * largest
    assert 2 * largest < total / 2


def write_wide_checkpoint(folder):
    """A bfloat16 checkpoint of some 20 MB whose largest tensor is a small part of it."""
    import torch
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    from tests.conftest import TEXT, VISION

    wide = {**TEXT, "hidden_size": 256, "moe_intermediate_size": 128, "num_hidden_layers": 12, "layer_types": None}
    config = DiffusionGemmaConfig(text_config=wide, vision_config=VISION, canvas_length=CANVAS)
    DiffusionGemmaForBlockDiffusion._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder / "config.json"


def quantized_folder(folder, target, bits=4):
    """The checkpoint in MLX layout: experts at `bits`, the rest of the linear layers and the embedding at 8."""
    model = load_model(folder, ModelConfig.from_file(folder / "config.json"), fuse=False)
    overrides = {}

    def predicate(path, module):
        if not hasattr(module, "to_quantized"):
            return False
        if "experts" in path:
            return True
        overrides[path] = {"group_size": 32, "bits": 8}
        return overrides[path]

    nn.quantize(model, group_size=32, bits=bits, class_predicate=predicate)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    mx.save_safetensors(str(target / "model.safetensors"), dict(tree_flatten(model.parameters())))
    edit_config(target, quantization={"group_size": 32, "bits": bits, "mode": "affine", **overrides})
    return target


def dequantized_folder(quantized, folder, target):
    """The same numbers as an HF-layout float32 checkpoint."""
    tensors, dense = mx.load(str(quantized / "model.safetensors")), {}
    quantization = json.loads((quantized / "config.json").read_text())["quantization"]
    for name, tensor in tensors.items():
        path = name.rsplit(".", 1)[0]
        if f"{path}.scales" in tensors:
            if not name.endswith(".weight"):
                continue
            options = quantization.get(path, quantization)
            scales, biases = tensors[f"{path}.scales"], tensors[f"{path}.biases"]
            tensor = mx.dequantize(tensor, scales, biases, options["group_size"], options["bits"])
        dense[name.removesuffix(".weight") if ".experts." in name else name] = np.array(tensor)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(dense, target / "model.safetensors")
    return target


def test_quantized_mlx_layout_with_overrides(folder, tmp_path):
    quantized = quantized_folder(folder, tmp_path / "quantized")
    names = read_headers(quantized)
    assert {f"{LAYER}.experts.gate_up_proj.{part}" for part in ("weight", "scales", "biases")} <= set(names)
    ours = load(quantized)[0]
    assert (ours.model.decoder.layers[0].experts.down_proj.bits, ours.model.decoder.embed_tokens.bits) == (4, 8)
    expected = logits(load(dequantized_folder(quantized, folder, tmp_path / "dense"))[0])
    got = logits(ours)
    assert np.abs(got - expected).max() <= 1e-4 * (expected.max() - expected.min())


def test_soft_embeddings_of_a_quantized_table(folder, tmp_path):
    quantized = quantized_folder(folder, tmp_path / "quantized")
    tempered = mx.random.normal((1, CANVAS, 120), key=mx.random.key(0)) * 4
    expected = load(dequantized_folder(quantized, folder, tmp_path / "dense"))[0].soft_embeddings(tempered)
    np.testing.assert_allclose(load(quantized)[0].soft_embeddings(tempered), expected, atol=1e-4)


def test_missing_path_folder_and_file(tmp_path):
    for path, complaint in [
        (tmp_path / "nowhere", "no folder"),
        (tmp_path, "no config.json in"),
        ("not a/repo id", "no folder not a/repo id"),
    ]:
        with pytest.raises(DGemmaError) as error:
            load(path)
        assert complaint in one_line(error)
    (tmp_path / "file").write_text("")
    with pytest.raises(DGemmaError, match="is a file; give the folder"):
        load(tmp_path / "file")


def test_a_failed_download_is_one_line(monkeypatch):
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(DGemmaError) as error:
        load("owner/name")
    assert one_line(error).startswith("no folder owner/name, and the hub download failed (no route to host); check")


def test_a_hub_repository_is_downloaded(monkeypatch, folder, model):
    import huggingface_hub

    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert np.array_equal(logits(load("owner/name", revision="abc")[0]), logits(model))
    assert (asked["repo"], asked["revision"]) == ("owner/name", "abc")


def test_no_weights(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(DGemmaError, match=r"no \.safetensors file in"):
        load(copied)


def test_missing_shard(reference, tmp_path):
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(DGemmaError) as error:
        load(tmp_path)
    assert shard.name in one_line(error)


def test_missing_tensor_is_named(copied):
    edit_tensors(copied, lambda t: t.pop(f"{LAYER}.router.scale"))
    with pytest.raises(DGemmaError) as error:
        load(copied)
    assert f"{LAYER}.router.scale (64,) is missing" in one_line(error)


def test_misshapen_tensor_is_named_with_both_shapes(copied):
    def transpose(tensors):
        tensors[f"{LAYER}.experts.down_proj"] = np.ascontiguousarray(
            tensors[f"{LAYER}.experts.down_proj"].swapaxes(1, 2)
        )

    edit_tensors(copied, transpose)
    with pytest.raises(DGemmaError) as error:
        load(copied)
    text = one_line(error)
    assert f"{LAYER}.experts.down_proj has shape (8, 32, 64), config.json asks for (8, 64, 32)" in text


def test_unknown_tensors_are_named(copied):
    edit_tensors(copied, lambda t: t.update({"model.decoder.layers.0.surprise": np.zeros(3)}))
    with pytest.raises(DGemmaError, match=r"unexpected tensor model\.decoder\.layers\.0\.surprise"):
        load(copied)
    edit_tensors(copied, lambda t: t.update({"transformer.wte": np.zeros(3)}))
    with pytest.raises(DGemmaError, match=r"unknown tensor transformer\.wte"):
        load(copied)


@pytest.mark.parametrize("keep", [0, 5, 200, 30_000, -1])
def test_truncated_file_is_named(copied, keep):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DGemmaError) as error:
        load(copied)
    assert "model.safetensors is truncated" in one_line(error)


def test_garbage_instead_of_a_header(copied):
    (copied / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"oops" + b"\0" * 100)
    with pytest.raises(DGemmaError, match="is not a safetensors file"):
        load(copied)


def test_unusable_tensor_type(copied):
    edit_tensors(copied, lambda t: t.update({f"{LAYER}.router.scale": np.zeros(64, np.int64)}))
    with pytest.raises(DGemmaError, match=r"router\.scale is I64, which is not supported"):
        load(copied)


def test_broken_tokenizer_is_one_line(copied):
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(DGemmaError) as error:
        load(copied)
    assert "the tokenizer in" in one_line(error)


def test_quantization_that_does_not_fit(copied):
    too_wide = {"group_size": 64, "bits": 4}  # the experts' down_proj has 32 inputs
    edit_config(copied, quantization={**too_wide, f"{LAYER}.experts.down_proj": too_wide})
    with pytest.raises(DGemmaError) as error:
        load(copied)
    assert "quantization cannot be applied" in one_line(error)


def test_generation_defaults_come_from_the_checkpoint(copied):
    (copied / "generation_config.json").unlink()
    assert load(copied)[0].generation_config.eos_token_id == [1, 2]  # config.json's, for want of another file
    edit_config(copied, generation_config={"t_max": 0.9, "eos_token_id": [9]})
    assert load(copied)[0].generation_config.t_max == 0.9
    (copied / "generation_config.json").write_text(json.dumps({"max_denoising_steps": 7, "eos_token_id": 5}))
    config = load(copied)[0].generation_config
    assert (config.max_denoising_steps, config.eos_token_id, config.t_max) == (7, [5], 0.8)


def test_fused_matrices_give_what_they_give_apart(folder):
    apart = load_model(folder, ModelConfig.from_file(folder / "config.json"), fuse=False)
    fused = load(folder)[0]
    names = dict(tree_flatten(fused.parameters()))
    assert {f"model.decoder.layers.0.{n}.weight" for n in ("mlp.gate_up_proj", "self_attn.qkv_proj")} <= set(names)
    assert not any(name.split(".")[-2] in ("gate_proj", "q_proj", "k_proj", "v_proj") for name in names)
    canvas = mx.array([list(range(16))])
    logits = [
        m.denoise(canvas, m.make_cache(), mx.random.normal((1, 16, 120), key=mx.random.key(0))) for m in (apart, fused)
    ]
    np.testing.assert_allclose(np.array(logits[0]), np.array(logits[1]), atol=2e-4)


def test_gate_and_up_of_different_formats_stay_apart():
    mlp = GatedMLP(64, 32)
    x = mx.random.normal((3, 64), key=mx.random.key(1))
    nn.quantize(mlp, 32, 8, class_predicate=lambda path, module: path == "up_proj")
    before = mlp(x)
    mlp.fuse()
    assert "gate_up_proj" not in mlp and mx.array_equal(mlp(x), before)


def test_projections_of_different_formats_stay_apart(folder):
    model = load_model(folder, ModelConfig.from_file(folder / "config.json"), fuse=False)
    attention, x = model.model.decoder.layers[0].self_attn, mx.random.normal((1, 3, 64), key=mx.random.key(1))
    nn.quantize(attention, 32, 8, class_predicate=lambda path, module: path == "v_proj")
    place = Place(0, lambda k, v: (k, v), attend=attend_causally)
    before = attention(x, [place])
    attention.fuse()
    assert "qkv_proj" not in attention
    np.testing.assert_allclose(np.array(attention(x, [place])), np.array(before), atol=1e-6)


def test_quantized_matrices_are_fused_too(folder, tmp_path):
    quantized = quantized_folder(folder, tmp_path / "q")
    config = ModelConfig.from_file(quantized / "config.json")
    apart, fused = load_model(quantized, config, fuse=False), load_model(quantized, config)
    assert isinstance(fused.model.decoder.layers[0].self_attn.qkv_proj, nn.QuantizedLinear)
    canvas = mx.array([list(range(16))])
    logits = [np.array(m.denoise(canvas, m.make_cache())) for m in (apart, fused)]
    np.testing.assert_allclose(*logits, atol=2e-4)
