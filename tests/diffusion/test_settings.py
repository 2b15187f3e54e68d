"""Sampler settings: validated as the reference does, merged over the checkpoint's."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.diffusion_gemma import DiffusionGemmaGenerationConfig
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from mlx_dgemma import DGemmaError, GenerationConfig

PUBLISHED = Path(__file__).parents[1] / "data" / "generation_config.json"
NUMBERS = st.one_of(st.integers(-3, 300), st.floats(-2, 2, allow_nan=False))


def test_published_file():
    config = GenerationConfig.from_file(PUBLISHED)
    expected = {**vars(GenerationConfig()), "eos_token_id": [1, 106, 50]}
    assert {k: v for k, v in vars(config).items() if k != "_given"} == {
        k: v for k, v in expected.items() if k != "_given"
    }


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": st.integers(-3, 300),
            "max_denoising_steps": NUMBERS,
            "t_min": NUMBERS,
            "t_max": NUMBERS,
            "confidence_threshold": NUMBERS,
            "stability_threshold": NUMBERS,
            "entropy_bound": NUMBERS,
        },
    )
)
def test_same_verdict_as_the_reference(settings):
    ours = accepts(lambda: GenerationConfig(**settings).over(GenerationConfig()))
    defaults = DiffusionGemmaGenerationConfig._get_default_generation_params()
    theirs = accepts(lambda: reference_config(**{**defaults, **settings}))
    assert ours == theirs


def reference_config(entropy_bound=0.1, sampler_config=None, **settings):
    sampler = EntropyBoundSamplerConfig(entropy_bound=entropy_bound)
    return DiffusionGemmaGenerationConfig(sampler_config=sampler, **settings)


def accepts(build) -> bool:
    try:
        build()
    except (ValueError, AttributeError):  # the reference's own messages read a field that does not exist
        return False
    return True


def test_one_temperature_is_compared_with_the_checkpoints_other():
    checkpoint = GenerationConfig(t_min=0.1, t_max=0.2)
    assert GenerationConfig(t_max=0.3).over(checkpoint).t_max == 0.3
    with pytest.raises(DGemmaError, match=r"t_max must be greater than t_min, got t_max=0\.2 and t_min=0\.3"):
        GenerationConfig(t_min=0.3).over(checkpoint)


def test_the_message_names_field_and_value():
    with pytest.raises(DGemmaError, match=r"entropy_bound must be a float > 0, got 0\.0"):
        GenerationConfig(entropy_bound=0.0)
    with pytest.raises(DGemmaError, match="token_choice must be one of categorical, argmax, got 'top'"):
        GenerationConfig(token_choice="top")
    with pytest.raises(DGemmaError, match="eos_token_id must be a list"):
        GenerationConfig(eos_token_id="1")
    with pytest.raises(DGemmaError, match="confidence_threshold"):
        GenerationConfig(confidence_threshold=float("nan"))


def test_unknown_fields_are_rejected():
    with pytest.raises(TypeError, match="temperature"):
        GenerationConfig(temperature=1.0)


def test_given_fields_win_over_the_checkpoints_and_the_rest_is_the_checkpoints():
    checkpoint = GenerationConfig(max_denoising_steps=24, entropy_bound=0.2, eos_token_id=[7])
    merged = GenerationConfig(entropy_bound=0.1, max_new_tokens=9).over(checkpoint)
    assert (merged.max_denoising_steps, merged.entropy_bound, merged.max_new_tokens) == (24, 0.1, 9)
    assert merged.eos_token_id == [7]
    assert GenerationConfig(eos_token_id=[]).over(checkpoint).eos_token_id == []


def test_the_stop_list_is_nobody_elses():
    ids = [1, 2]
    config = GenerationConfig(eos_token_id=ids)
    ids.append(3)
    assert config.eos_token_id == [1, 2]
    assert GenerationConfig(eos_token_id=5).eos_token_id == [5]


def test_other_samplers_are_refused_and_foreign_fields_ignored(tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"sampler_config": {"_cls_name": "Other"}}))
    with pytest.raises(DGemmaError, match=r"generation_config\.json: sampler_config"):
        GenerationConfig.from_file(path)
    path.write_text(json.dumps({"transformers_version": "9", "t_max": 0.9, "eos_token_id": 3}))
    assert GenerationConfig.from_file(path).eos_token_id == [3]
    path.write_text("{")
    with pytest.raises(DGemmaError, match=r"generation_config\.json"):
        GenerationConfig.from_file(path)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True, "10"])
def test_the_cutoff_is_a_positive_number_or_none(value):
    with pytest.raises(DGemmaError, match="soft_embedding_cutoff must be a number > 0"):
        GenerationConfig(soft_embedding_cutoff=value)
    assert GenerationConfig().soft_embedding_cutoff is None and GenerationConfig(soft_embedding_cutoff=10)
    assert GenerationConfig.from_dict({"soft_embedding_cutoff": 10.0}).soft_embedding_cutoff is None  # ours alone
