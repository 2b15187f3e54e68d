"""vision_config as published and as transformers saves it, and what is refused."""

import copy
import json
from pathlib import Path

import pytest
from transformers import DiffusionGemmaConfig

from mlx_dgemma import DGemmaError
from mlx_dgemma.model.vision_config import VisionConfig
from tests.conftest import TEXT, VISION

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "config.json").read_text())


def changed(**changes) -> dict:
    """The published config with vision_config fields changed; a value of KeyError removes the field."""
    content = copy.deepcopy(PUBLISHED)
    content["vision_config"] = {**content["vision_config"], **changes}
    content["vision_config"] = {k: v for k, v in content["vision_config"].items() if v is not KeyError}
    return content


def test_published_numbers():
    assert VisionConfig.from_dict(PUBLISHED) == VisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, head_dim=72,
        patch_size=16, pooling_kernel_size=3, position_embedding_size=10240, rms_norm_eps=1e-6, rope_theta=100.0,
        standardize=True, image_token_id=258880, boi_token_id=255999, eoi_token_id=258882, soft_tokens=280,
    )  # fmt: skip


def test_what_transformers_saves_says_the_same():
    resaved = json.loads(DiffusionGemmaConfig.from_dict(copy.deepcopy(PUBLISHED)).to_json_string())
    assert resaved["vision_config"]["rope_parameters"]["rope_type"] == "axial"
    assert VisionConfig.from_dict(resaved) == VisionConfig.from_dict(PUBLISHED)


def test_a_small_config_as_transformers_saves_it():
    saved = json.loads(DiffusionGemmaConfig(text_config=TEXT, vision_config=VISION).to_json_string())
    assert "vision_soft_tokens_per_image" not in saved
    config = VisionConfig.from_dict(saved)
    assert (config.hidden_size, config.head_dim, config.patch_size, config.patch_values) == (16, 16, 4, 48)
    assert (config.standardize, config.soft_tokens, config.rope_theta) == (False, 280, 100.0)


def test_soft_tokens_are_the_checkpoints():
    assert VisionConfig.from_dict({**PUBLISHED, "vision_soft_tokens_per_image": 70}).soft_tokens == 70


@pytest.mark.parametrize("content", [{}, {"vision_config": None}, {**PUBLISHED, "vision_config": None}])
def test_no_vision_config(content):
    assert VisionConfig.from_dict(content) is None


def test_what_nobody_reads_and_what_says_nothing_are_ignored():
    content = changed(
        rope_parameters=KeyError, rms_norm_eps=KeyError, use_clipped_linears=KeyError, attention_bias=KeyError,
        num_key_value_heads=KeyError, global_head_dim=99, max_position_embeddings="x", default_output_length=None,
    )  # fmt: skip
    assert VisionConfig.from_dict(content) == VisionConfig.from_dict(PUBLISHED)


@pytest.mark.parametrize(
    ("vocab_size", "has"), [(262_144, True), (258_883, True), (258_882, False), (258_000, False), (100, False)]
)
def test_all_three_tokens_must_be_in_the_vocabulary(vocab_size, has):
    assert VisionConfig.from_dict(PUBLISHED).has_tokens(vocab_size) is has


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"use_clipped_linears": True}, "vision_config.use_clipped_linears is True, only False or None is supported"),
        ({"hidden_activation": "gelu"}, "vision_config.hidden_activation is 'gelu', only 'gelu_pytorch_tanh'"),
        ({"attention_bias": True}, "vision_config.attention_bias is True"),
        ({"model_type": "siglip_vision_model"}, "vision_config.model_type is 'siglip_vision_model'"),
        ({"num_key_value_heads": 8}, "vision_config.num_key_value_heads is 8, only 16 or None is supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0}}, "rope_parameters.rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "axial", "rope_theta": 0}}, "rope_parameters.rope_theta is 0"),
        ({"rope_parameters": {"rope_type": "axial"}}, "vision_config.rope_parameters.rope_theta is missing"),
        (
            {"rope_parameters": {"rope_type": "axial", "rope_theta": 100.0, "factor": 8.0}},
            "vision_config.rope_parameters.factor is 8.0, which is not supported",
        ),
        ({"rope_parameters": [1]}, "vision_config.rope_parameters is [1], it must be an object"),
        ({"hidden_size": KeyError}, "vision_config.hidden_size is missing"),
        ({"standardize": KeyError}, "vision_config.standardize is None, it must be true or false"),
        ({"standardize": 1}, "vision_config.standardize is 1"),
        ({"patch_size": -16}, "vision_config.patch_size is -16"),
        ({"pooling_kernel_size": True}, "vision_config.pooling_kernel_size is True"),
        ({"num_hidden_layers": 10**6}, "vision_config.num_hidden_layers is 1000000, more than 1000"),
        ({"head_dim": 74}, "vision_config.head_dim is 74, two directions need a multiple of 4"),
        ({"rms_norm_eps": "x"}, "vision_config.rms_norm_eps is 'x'"),
    ],
)
def test_refused_by_name(changes, complaint):
    with pytest.raises(DGemmaError) as error:
        VisionConfig.from_dict(changed(**changes))
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vision_config": [1]}, "vision_config is [1], it must be an object"),
        ({"image_token_id": None}, "image_token_id is None, it must be a token id"),
        ({"boi_token_id": -1}, "boi_token_id is -1"),
        ({"eoi_token_id": "x"}, "eoi_token_id is 'x'"),
        ({"vision_soft_tokens_per_image": 0}, "vision_soft_tokens_per_image is 0, it must be a positive integer"),
    ],
)
def test_refused_at_the_top(changes, complaint):
    with pytest.raises(DGemmaError) as error:
        VisionConfig.from_dict({**PUBLISHED, **changes})
    assert complaint in str(error.value)
