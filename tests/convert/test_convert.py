"""The converter: plans on the published tensor table, every format, what is refused, resume, memory."""

import json
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from convert.recipes import RECIPES, Format, format_of, parse_override, rules_of
from mlx_dgemma import DGemmaError, generate_text, load
from mlx_dgemma.checkpoint.headers import read_headers
from tests.checkpoint.test_loading import edit_config, edit_tensors, logits, one_line, quantized_folder
from tests.conftest import random_reference
from tests.convert.conftest import DATA, ROOT, broken, convert, failing


def test_a_dry_run_reads_no_weights_and_writes_nothing(capsys, hollow, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    code, _, _ = convert(capsys, "--hf-path", hollow, "--mlx-path", tmp_path / "t", "--dry-run", "-q")
    assert code == 0 and not list(tmp_path.iterdir())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before < 10_000


def test_unquantized_conversion_changes_nothing(to_target, model):
    target = to_target()
    assert np.array_equal(logits(load(target)[0]), logits(model))


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (["-q", "--q-bits", "8", "--q-group-size", "32"], 0.05),
        (["--recipe", "uniform", "--q-mode", "mxfp8"], 0.5),
        (["--recipe", "uniform", "--q-bits", "6", "--q-group-size", "32"], 0.3),
        (["--recipe", "uniform", "--q-mode", "nvfp4"], 2.0),
        (["--recipe", "uniform", "--q-mode", "mxfp4"], 2.0),
    ],
)
def test_quantized_conversions_load_and_stay_close(to_target, model, arguments, limit):
    expected = logits(model)
    error = np.abs(logits(load(to_target(*arguments))[0]) - expected).mean() / expected.std()
    assert 0 < error < limit


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_generation(to_target, recipe):
    model, _ = load(to_target("--recipe", recipe))
    assert generate_text(model, None, [1, 2, 3]).steps_per_canvas


def test_streamed_slices_give_what_one_piece_gives(to_target, folder, monkeypatch):
    from convert import source

    monkeypatch.setattr(source, "SLICE", 3000)  # a few rows at a time
    weights = mx.load(
        str(to_target("--recipe", "uniform", "--q-group-size", "32") / "model-00001-of-00001.safetensors")
    )
    for name in ("model.decoder.layers.0.mlp.up_proj", "model.decoder.layers.1.experts.gate_up_proj"):
        plain = mx.load(str(folder / "model.safetensors"))
        dense = plain[name] if name in plain else plain[f"{name}.weight"]
        for part, expected in zip(("weight", "scales", "biases"), mx.quantize(dense, 32, 4), strict=True):
            assert mx.array_equal(weights[f"{name}.{part}"], expected)


def test_shards_and_index(to_target, model, small_shards):
    target = to_target()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 3 and {f.name for f in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in read_headers(target).values())
    assert np.array_equal(logits(load(target, verify=True)[0]), logits(model))


def test_requantize_and_dequantize(to_target, folder, tmp_path, capsys):
    four = quantized_folder(folder, tmp_path / "four")
    code, _, err = convert(capsys, "--hf-path", four, "--mlx-path", tmp_path / "x")
    assert code == 1 and "add -q to requantize it, or --dequantize" in err
    expected = logits(load(four)[0])
    dense = to_target("--dequantize", source=four)
    assert "quantization" not in json.loads((dense / "config.json").read_text())
    assert np.abs(logits(load(dense)[0]) - expected).max() < 1e-3
    again = to_target("--recipe", "uniform", "--q-bits", "8", "--q-group-size", "32", "--force", source=four)
    assert np.abs(logits(load(again)[0]) - expected).mean() < 0.2 * expected.std()


def test_dtype(to_target):
    target = to_target("--dtype", "float16", "-q", "--q-group-size", "32")
    assert {info.dtype for info in read_headers(target).values()} == {"F16", "U32"}
    assert json.loads((target / "config.json").read_text())["dtype"] == "float16"


def test_overrides_come_first(to_target):
    target = to_target("--recipe", "8bit", "--override", "experts=4:32", "--override", "layers.0.mlp=16")
    quantization = json.loads((target / "config.json").read_text())["quantization"]
    names = set(read_headers(target))
    assert "model.decoder.layers.0.mlp.up_proj.scales" not in names
    assert "model.decoder.layers.1.mlp.up_proj.scales" in names
    experts = quantization.get("model.decoder.layers.0.experts.down_proj", quantization)
    assert (experts["bits"], experts["group_size"]) == (4, 32)


def test_recipes_as_tables():
    rules = rules_of("uniform", Format(6, 64), ("q_proj=16", "down_proj=2:32"))
    assert format_of("model.decoder.layers.3.self_attn.q_proj", rules) is None
    assert format_of("model.decoder.layers.3.mlp.down_proj", rules) == Format(2, 32)
    assert format_of("model.decoder.layers.3.mlp.up_proj", rules) == Format(6, 64)
    assert parse_override("a=b=4::mxfp4") == (".*(?:a=b).*", Format(4, 32, "mxfp4"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--q-bits", "7"],
        ["--q-mode", "mxfp4", "--q-bits", "8"],
        ["--q-mode", "nvfp4", "--q-group-size", "64"],
        ["--q-group-size", "48"],
        ["--recipe", "best"],
        ["--recipe", "8bit", "--q-bits", "4"],
        ["-q", "--dequantize"],
        ["--override", "experts"],
        ["--override", "(=4"],
        ["--override", "x=4:64:affine:more"],
        ["--dtype", "int8"],
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, folder, arguments):
    code, out, err = convert(capsys, "--hf-path", folder, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


def test_an_override_that_matches_nothing_is_an_error(capsys, folder, tmp_path):
    code, _, err = convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", "--override", "specialists=4")
    assert code == 1 and "no module matches 'specialists'" in err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.update({"model.surprise": np.zeros(3)}), "unknown tensor model.surprise"),
        (lambda t: t.pop("model.decoder.norm.weight"), "tensor model.decoder.norm.weight (64,) is missing"),
        (
            lambda t: t.update({"model.decoder.layers.2.router.scale": np.zeros((3,), np.float32)}),
            "tensor model.decoder.layers.2.router.scale has shape (3,), config.json asks for (64,)",
        ),
        (
            lambda t: t["model.decoder.layers.1.experts.down_proj"].__setitem__((5, 3, 1), np.nan),
            "model.safetensors: tensor model.decoder.layers.1.experts.down_proj has NaN or Inf",
        ),
        (
            lambda t: t["model.decoder.embed_tokens.weight"].__setitem__((5, 3), np.inf),
            "model.safetensors: tensor model.decoder.embed_tokens.weight has NaN or Inf",
        ),
    ],
)
def test_broken_tensors_are_named(capsys, folder, tmp_path, change, complaint):
    assert complaint in failing(capsys, broken(folder, tmp_path, change), tmp_path / "t", "-q", "--q-group-size", "32")


def test_broken_folders(capsys, folder, tmp_path):
    assert "no folder" in failing(capsys, tmp_path / "nowhere", tmp_path / "t")
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "model.safetensors is truncated" in failing(capsys, copy, tmp_path / "t")
    edit_config(copy, model_type="llama")
    assert "model_type is 'llama'" in failing(capsys, copy, tmp_path / "t")


def test_what_a_recipe_does_not_name_stays_packed(to_target, folder, tmp_path):
    source = quantized_folder(folder, tmp_path / "source", bits=8)
    edit_config(source, quantization_config=json.loads((source / "config.json").read_text())["quantization"])
    target = to_target("-q", "--q-group-size", "32", source=source)  # experts to 4 bits, as mlx-vlm's folders look
    before, after = mx.load(str(source / "model.safetensors")), mx.load(str(next(target.glob("*.safetensors"))))
    name = "model.decoder.layers.0.self_attn.q_proj"
    for part in ("weight", "scales", "biases"):
        assert mx.array_equal(before[f"{name}.{part}"], after[f"{name}.{part}"])
    experts = "model.decoder.layers.0.experts.down_proj.weight"
    assert 2 * after[experts].size == before[experts].size
    assert load(target)
    only = to_target("--override", "embed_tokens=4:32", "--force", source=source)
    assert load(only)[0].model.decoder.layers[0].experts.down_proj.bits == 8


@pytest.mark.parametrize("mode", ["mxfp8", "nvfp4", "mxfp4"])
def test_formats_with_integer_scales_can_be_sources(capsys, to_target, tmp_path, mode):
    source = to_target("--recipe", "uniform", "--q-mode", mode).rename(tmp_path / "source")
    expected = logits(load(source)[0])
    dense = to_target("--dequantize", source=source)
    assert np.abs(logits(load(dense)[0]) - expected).max() <= 1e-3 * np.ptp(expected)
    again = to_target("--recipe", "8bit", "--force", "--override", "norm=16", source=source)
    assert np.abs(logits(load(again)[0]) - expected).mean() < 0.3 * expected.std()


def test_values_too_large_for_the_type_are_an_error(capsys, folder, tmp_path):
    big = broken(folder, tmp_path, lambda t: t["model.decoder.norm.weight"].__setitem__(0, 1e5))
    complaint = failing(capsys, big, tmp_path / "t", "--dtype", "float16")
    assert "tensor model.decoder.norm.weight has values too large for F16" in complaint


def test_dropped_tensors_are_in_the_plan(capsys, folder, tmp_path):
    copy = broken(folder, tmp_path, lambda t: t.update({"lm_head.weight": t["model.decoder.embed_tokens.weight"]}))
    _, out, _ = convert(capsys, "--hf-path", copy, "--dry-run", "--verbose")
    assert {"dropped: lm_head.weight, tied to the embedding", "dropped: 1 tensor, tied to the embedding"} <= {
        *out.splitlines()
    }


@pytest.mark.parametrize("text_config", [KeyError, None, [], {}, {"hidden_size": "big"}])
def test_a_malformed_gemma4_config_is_one_line(capsys, gemma4, tmp_path, text_config):
    copy = shutil.copytree(gemma4[1], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config.pop("text_config")
    if text_config is not KeyError:
        config["text_config"] = text_config
    (copy / "config.json").write_text(json.dumps(config))
    assert "config.json: text_config" in failing(capsys, copy, tmp_path / "t")


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": [-256, 0]},
        {"data_offsets": [0.0, 256.0]},
        {"data_offsets": [0]},
        {"shape": [-64]},
        {"shape": 64},
        {"dtype": "F5"},
    ],
)
def test_malformed_headers_are_one_line(capsys, folder, tmp_path, entry):
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = (copy / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model.decoder.norm.weight"].update(entry)
    text = json.dumps(header).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    assert "model.safetensors" in failing(capsys, copy, tmp_path / "t")
    with pytest.raises(DGemmaError, match=r"model\.safetensors"):
        load(copy)


def test_trust(capsys, folder, tmp_path, to_target):
    target = tmp_path / "target"
    code, out, err = convert(
        capsys, "--hf-path", folder, "--mlx-path", target, "-q", "--q-group-size", "32", "--verify"
    )
    assert (code, out) == (0, "")
    assert re.search(r"experts +relative error [1-9]\.\d+e-0[12] +6\.00 bits per weight", err)
    assert re.search(r"attention +relative error 0\.00e\+00 +32\.00 bits per weight", err)
    assert re.search(r"KL of denoiser logits: \d\.\d+e-\d+ nats per position over 3 prompts", err)
    record = json.loads((target / "convert.json").read_text())
    assert (record["source"], record["recipe"]) == (str(folder), "experts-4bit")
    assert load(target, verify=True)
    card = (target / "README.md").read_text()
    assert "library_name: mlx" in card and "| experts |" in card
    (shard,) = target.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DGemmaError) as error:
        load(target, verify=True)
    assert "SHA-256 differs" in one_line(error)
    with pytest.raises(DGemmaError, match=r"no convert\.json"):
        load(folder, verify=True)


def test_upload(capsys, folder, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, repo, exist_ok):
            calls.append(repo)

        def upload_folder(self, folder_path, repo_id):
            if repo_id == "me/down":
                raise OSError("no route\nlong story")
            calls.append(sorted(p.name for p in Path(folder_path).iterdir()))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    to = tmp_path / "t"
    assert convert(capsys, "--hf-path", folder, "--mlx-path", to, "--upload-repo", "me/model")[0] == 0
    assert calls[0] == "me/model" and {"README.md", "config.json", "convert.json"} <= set(calls[1])
    code, _, err = convert(capsys, "--hf-path", folder, "--mlx-path", to, "--force", "--upload-repo", "me/down")
    assert code == 1 and "error: the upload to me/down failed: no route" in err


def test_tokenizer_and_generation_config_come_along(to_target):
    from mlx_dgemma.checkpoint.loading import EMBEDDED

    target = to_target("-q", source=EMBEDDED)
    ours, tokenizer = load(target)
    assert ours.generation_config.eos_token_id == load()[0].generation_config.eos_token_id
    assert tokenizer.chat_template


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    """Peak resident memory ≤ 1.5 × the largest tensor + 500 MB, for a checkpoint that is larger than that."""
    largest = write_large_checkpoint(tmp_path / "source")
    # not ru_maxrss: a new process inherits that of the one it was forked from
    code = (
        "import sys; from convert.__main__ import main; code = main(sys.argv[1:]); "
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "--hf-path", tmp_path / "source", "--mlx-path", tmp_path / "t", "-q"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    peak = 1024 * int(process.stdout.split()[-1])
    total = (tmp_path / "source" / "model.safetensors").stat().st_size
    bound = 1.5 * largest + 500e6
    assert largest < peak < bound < total


def write_large_checkpoint(folder: Path) -> int:
    """Some 700 MB of bfloat16 zeros in many layers, sparse on disk; returns the largest tensor's bytes."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    from tests.conftest import TEXT, VISION

    sizes = {"hidden_size": 512, "moe_intermediate_size": 256, "num_experts": 64, "num_hidden_layers": 14}
    config = DiffusionGemmaConfig(text_config={**TEXT, **sizes, "layer_types": None}, vision_config=VISION)
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion._from_config(config, dtype=torch.bfloat16)
    header, offset, largest = {}, 0, 0
    for name, tensor in model.state_dict().items():
        if name.startswith("model.decoder.") or name.endswith("layer_scalar"):
            end = offset + 2 * tensor.numel()
            header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
            offset, largest = end, max(largest, 2 * tensor.numel())
    folder.mkdir()
    config.save_pretrained(folder)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return largest


# Plain Gemma 4


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory):
    """A small random Gemma 4 with experts, from the reference implementation, and its folder."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    from tests.conftest import TEXT, VISION

    torch.manual_seed(0)
    text = {
        **TEXT,
        "enable_moe_block": True,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "final_logit_softcapping": 30.0,
    }
    config = Gemma4Config(text_config=text, vision_config=VISION, audio_config=None)
    model = Gemma4ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    reference = random_reference()
    state = reference.model.decoder.state_dict()
    with torch.no_grad():
        for name, parameter in model.model.language_model.state_dict().items():
            if name in state and state[name].shape == parameter.shape:
                parameter.copy_(state[name])
    folder = tmp_path_factory.mktemp("gemma4")
    model.save_pretrained(folder)
    return model, folder


def test_gemma4_becomes_an_encoder_that_is_still_gemma4(gemma4, to_target):
    theirs, folder = gemma4
    target = to_target(source=folder)
    ours, _ = load(target)
    ids = np.random.default_rng(0).integers(3, 120, (1, 40))
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    got = np.array(ours.next_token_logits(mx.array(ids), ours.make_cache()))
    assert expected.std() > 1
    assert np.abs(got - expected).max() <= 1e-4 * (expected.max() - expected.min())


def test_the_patch_starts_from_zero_self_conditioning(gemma4, to_target):
    ours, _ = load(to_target(source=gemma4[1]))
    assert ours.config.denoiser_trained is False and ours.config.canvas_length == 256
    parameters = dict(tree_flatten(ours.parameters()))
    for index in range(5):
        scalar = parameters[f"model.decoder.layers.{index}.layer_scalar"]
        assert mx.array_equal(parameters[f"model.encoder.language_model.layers.{index}.layer_scalar"], scalar)
    cache, canvas = ours.make_cache(), mx.array([list(range(16))])
    ours.encode(mx.array([[3, 4, 5]]), cache)
    plain = ours.denoise(canvas, cache)
    conditioned = ours.denoise(canvas, cache, mx.random.normal((1, 16, 120)))
    assert mx.array_equal(plain, conditioned)  # the contribution is exactly zero
    assert parameters["model.decoder.self_conditioning.gate_up_proj.weight"].std().item() > 0.01


def test_the_patch_replaces_nothing_that_the_source_has(capsys, gemma4, tmp_path):
    name = "model.language_model.self_conditioning.down_proj.weight"
    copy = broken(gemma4[1], tmp_path, lambda t: t.update({name: np.ones((64, 96), np.float32)}))
    assert f"{name} is unexpected; plain Gemma 4 has no such tensor" in failing(capsys, copy, tmp_path / "t")


def test_the_patch_gets_the_samplers_defaults_and_nothing_of_our_own(gemma4, to_target):
    content = json.loads((to_target(source=gemma4[1]) / "generation_config.json").read_text())
    published = json.loads((DATA / "generation_config.json").read_text())
    own = {"pad_token_id", "transformers_version", "eos_token_id"}
    assert {k: v for k, v in content.items() if k not in own} == {k: v for k, v in published.items() if k not in own}


def test_a_quantized_patch_is_still_exactly_zero(gemma4, to_target):
    ours, _ = load(to_target("--recipe", "uniform", "--q-group-size", "32", source=gemma4[1]))
    cache, canvas = ours.make_cache(), mx.array([list(range(16))])
    ours.encode(mx.array([[3, 4, 5]]), cache)
    assert mx.array_equal(ours.denoise(canvas, cache), ours.denoise(canvas, cache, mx.random.normal((1, 16, 120))))


def test_generate_says_that_the_denoiser_is_untrained(gemma4, to_target, capsys):
    from mlx_dgemma import generate

    target = to_target(source=gemma4[1])
    shutil.copy(ROOT / "mlx_dgemma/checkpoint/embedded/tokenizer.json", target)
    shutil.copy(ROOT / "mlx_dgemma/checkpoint/embedded/tokenizer_config.json", target)
    shutil.copy(ROOT / "mlx_dgemma/checkpoint/embedded/chat_template.jinja", target)
    assert generate.main(["--model", str(target), "--prompt", "ab", "--max-denoising-steps", "1"]) == 0
    assert "warning: this denoiser is untrained" in capsys.readouterr().err


def test_vision_weights_come_along(gemma4, folder, to_target):
    for source in (gemma4[1], folder):
        vision = {n: t for n, t in load_file(source / "model.safetensors").items() if "vision" in n}
        target = to_target("--force", source=source)
        kept = {n for n in read_headers(target) if "vision" in n}
        assert len(kept) == len(vision) > 5 and all(n.startswith("model.encoder.") for n in kept)


def test_save_file_is_what_tests_edit_with(tmp_path):
    """Guards the helpers above: an edited file is still read by the reference library."""
    save_file({"a": np.zeros(2)}, tmp_path / "model.safetensors")
    edit_tensors(tmp_path, lambda t: t.update({"b": np.ones(2)}))
    assert set(load_file(tmp_path / "model.safetensors")) == {"a", "b"}
