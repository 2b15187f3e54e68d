"""config.json in both dialects, and what is refused."""

import copy
import json
from pathlib import Path

import pytest
from transformers import DiffusionGemmaConfig

from mlx_dgemma import DGemmaError
from mlx_dgemma.model.config import ModelConfig

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = json.loads((DATA / "config.json").read_text())


def changed(**changes) -> dict:
    """The published config with text_config fields changed; a value of KeyError removes the field."""
    content = copy.deepcopy(PUBLISHED)
    for name, value in changes.items():
        if value is KeyError:
            del content["text_config"][name]
        else:
            content["text_config"][name] = value
    return content


def test_published_numbers():
    config = ModelConfig.from_file(DATA / "config.json")
    full = [i for i, layer in enumerate(config.layers) if layer.window is None]
    assert full == [5, 11, 17, 23, 29]
    assert {(layer.head_dim, layer.num_key_value_heads) for layer in config.layers} == {(256, 8), (512, 2)}
    assert config.layers[0].window == 1024
    assert config.layers[0].rope == {"rope_type": "default", "rope_theta": 10000.0}
    assert config.layers[5].rope["partial_rotary_factor"] == 0.25
    assert (config.canvas_length, config.eos_token_id) == (256, (1, 106))


def test_both_dialects_say_the_same():
    resaved = json.loads(DiffusionGemmaConfig.from_dict(copy.deepcopy(PUBLISHED)).to_json_string())
    assert "per_layer_config" in resaved["text_config"] and "global_head_dim" not in resaved["text_config"]
    assert ModelConfig.from_dict(resaved) == ModelConfig.from_dict(PUBLISHED)


def test_absent_defaults_are_the_references():
    shorter = changed(final_logit_softcapping=KeyError, rms_norm_eps=KeyError, rope_parameters=KeyError)
    assert ModelConfig.from_dict(shorter) == ModelConfig.from_dict(PUBLISHED)


def test_absent_layer_types_follow_the_five_to_one_pattern():
    assert ModelConfig.from_dict(changed(layer_types=KeyError)) == ModelConfig.from_dict(PUBLISHED)


def test_fields_nobody_uses_are_ignored():
    assert (
        ModelConfig.from_dict(changed(initializer_range=7, chunk_size_feed_forward=3, brand_new=1)).vocab_size == 262144
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_activation": "relu"}, "text_config.hidden_activation is 'relu'"),
        ({"attention_bias": True}, "text_config.attention_bias is True"),
        ({"use_bidirectional_attention": "all"}, "text_config.use_bidirectional_attention is 'all'"),
        ({"num_kv_shared_layers": 4}, "text_config.num_kv_shared_layers is 4"),
        ({"hidden_size_per_layer_input": 256}, "text_config.hidden_size_per_layer_input is 256"),
        ({"vocab_size": KeyError}, "text_config.vocab_size is missing"),
        ({"num_experts": None}, "text_config.num_experts is missing"),
        ({"hidden_size": -1}, "text_config.hidden_size is -1"),
        ({"top_k_experts": 200}, "text_config.top_k_experts is 200 of 128"),
        ({"num_key_value_heads": 3}, "key-value heads"),
        ({"layer_types": ["sliding_attention"]}, "text_config.layer_types must name 30 layers"),
        ({"final_logit_softcapping": 0}, "text_config.final_logit_softcapping is 0"),
        ({"per_layer_config": {"5": {"head_dim": 512, "sliding_window": 3}}}, "sets sliding_window"),
        (
            {
                "rope_parameters": {
                    **PUBLISHED["text_config"]["rope_parameters"],
                    "full_attention": {"rope_type": "yarn"},
                }
            },
            "rope_parameters.full_attention.rope_theta is missing",
        ),
        (
            {
                "rope_parameters": {
                    **PUBLISHED["text_config"]["rope_parameters"],
                    "full_attention": {"rope_type": "yarn", "rope_theta": 1e6},
                }
            },
            "rope_parameters.full_attention.rope_type is 'yarn'",
        ),
        (
            {
                "rope_parameters": {
                    **PUBLISHED["text_config"]["rope_parameters"],
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "factor": 8.0},
                }
            },
            "rope_parameters.sliding_attention.factor is 8.0",
        ),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(changes, complaint):
    with pytest.raises(DGemmaError, match=complaint.replace(".", r"\.")):
        ModelConfig.from_dict(changed(**changes))


def test_other_models_and_foreign_quantization_are_refused():
    with pytest.raises(DGemmaError, match="model_type is 'gemma4'"):
        ModelConfig.from_dict({**PUBLISHED, "model_type": "gemma4"})
    with pytest.raises(DGemmaError, match="tie_word_embeddings is False"):
        ModelConfig.from_dict({**PUBLISHED, "tie_word_embeddings": False})
    with pytest.raises(DGemmaError, match="'modelopt' format"):
        ModelConfig.from_dict({**PUBLISHED, "quantization_config": {"quant_method": "modelopt"}})
    with pytest.raises(DGemmaError, match="text_config is missing"):
        ModelConfig.from_dict({"model_type": "diffusion_gemma"})


ROPE = PUBLISHED["text_config"]["rope_parameters"]


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": [["full_attention"]] * 30},
        {"rope_parameters": [1]},
        {"rope_parameters": {**ROPE, "full_attention": [1]}},
        {"rope_parameters": {**ROPE, "full_attention": {"rope_theta": "1e4"}}},
        {"rope_parameters": {**ROPE, "full_attention": {"rope_theta": -1}}},
        {"rope_parameters": {**ROPE, "full_attention": {"rope_theta": 1e6, "partial_rotary_factor": "x"}}},
        {"rope_parameters": {**ROPE, "full_attention": {"rope_theta": 1e6, "partial_rotary_factor": 2}}},
        {"per_layer_config": [1]},
        {"per_layer_config": {"foo": {"head_dim": 512}}},
        {"per_layer_config": {"5": 64}},
        {"hidden_size": 10**12},
        {"hidden_size": True},
        {"rms_norm_eps": float("nan")},
        {"final_logit_softcapping": "30"},
        {"hidden_activation": ["gelu"]},
    ],
)
def test_malformed_values_are_one_line(changes):
    with pytest.raises(DGemmaError) as error:
        ModelConfig.from_dict(changed(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "quantization",
    [
        [4],
        "4bit",
        {"bits": 4},
        {"group_size": 64},
        {"group_size": 64, "bits": [4]},
        {"group_size": 64, "bits": 4, "mode": ["affine"]},
        {"group_size": 64, "bits": 4, "model.decoder.embed_tokens": {"bits": 8}},
        {"group_size": 64, "bits": 4, "model.decoder.embed_tokens": 8},
    ],
)
def test_malformed_quantization_is_one_line(quantization):
    with pytest.raises(DGemmaError, match="quantization"):
        ModelConfig.from_dict({**PUBLISHED, "quantization": quantization})


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", "[" * 100_000])
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(DGemmaError, match=r"config\.json is not"):
        ModelConfig.from_file(path)
