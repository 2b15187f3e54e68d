"""Sources that could not be loaded once they are converted, and leftovers that are no files."""

import json
import os
import shutil

import mlx.core as mx
import pytest

from tests.convert.conftest import convert, failing
from tests.fuzz import conversions, small


@pytest.fixture
def source(tmp_path):
    return small.copy(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", "{"), ("generation_config.json", "[]"), ("tokenizer.json", "{}"),
        ("generation_config.json", json.dumps({"max_denoising_steps": 0.4})), ("tokenizer_config.json", "["),
    ],
)  # fmt: skip
def test_what_could_not_be_loaded_is_not_converted(capsys, source, tmp_path, name, content):
    (source / name).write_text(content)
    assert "small" in failing(capsys, source, tmp_path / "t")
    assert not list(tmp_path.glob("*t.*"))


def test_defaults_inside_config_json_are_checked_too(capsys, source, tmp_path):
    (source / "generation_config.json").unlink()
    config = {**small.CONFIG, "generation_config": {"t_min": "x"}}
    (source / "config.json").write_text(json.dumps(config))
    assert "t_min" in failing(capsys, source, tmp_path / "t")


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [1.5]}'])
def test_generation_defaults_of_plain_gemma(capsys, tmp_path, content):
    source = shutil.copytree(conversions.source("gemma4"), tmp_path / "gemma")
    (source / "generation_config.json").write_text(content)
    assert "generation_config.json" in failing(capsys, source, tmp_path / "t")


@pytest.mark.parametrize("resume", [[], ["--resume"], ["--force"]])
def test_a_record_that_is_a_pipe_is_not_waited_for(capsys, source, tmp_path, resume):
    partial = tmp_path / "t.partial"
    partial.mkdir()
    os.mkfifo(partial / "convert.json")
    code, _, _ = convert(capsys, "--hf-path", source, "--mlx-path", tmp_path / "t", *resume)
    assert code == (0 if resume else 1)


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 3000])
def test_patterns_beyond_what_can_be_matched(capsys, source, tmp_path, pattern):
    code, _, err = convert(capsys, "--hf-path", source, "--override", f"{pattern}=4", "--dry-run")
    assert code == 2 and "is not REGEX=BITS" in err and len(err) < 2000


def test_a_link_to_itself_beside_the_weights(capsys, source, tmp_path):
    (source / "notes.txt").symlink_to("notes.txt")
    assert convert(capsys, "--hf-path", source, "--mlx-path", tmp_path / "t")[0] == 0


@pytest.mark.parametrize("part", ["scales", "biases"])
@pytest.mark.parametrize("change", [None, slice(1), (slice(None), slice(1))])
def test_scales_and_biases_that_do_not_belong_to_their_weights(capsys, tmp_path, part, change):
    if (part, change) == ("scales", None):
        return  # then the module is not quantized, and its weight has another shape
    source = shutil.copytree(conversions.source("quantized"), tmp_path / "quantized")
    (shard,) = source.glob("*.safetensors")
    tensors, name = dict(mx.load(str(shard))), f"model.decoder.layers.0.self_attn.q_proj.{part}"
    kept = tensors.pop(name)
    mx.eval(kept, *tensors.values())
    if change is not None:
        tensors[name] = kept[change]
    mx.save_safetensors(str(shard), tensors)
    for options in ([], ["--dequantize"]):
        complaint = failing(capsys, source, tmp_path / "t", *options or ["-q", "--q-group-size", "32"])
        assert "lacks scales or biases of shape" in complaint
