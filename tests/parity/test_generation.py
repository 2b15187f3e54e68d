"""Whole generations, token for token: the same random numbers go to the reference and to us."""

import pytest
import torch
from transformers.models.diffusion_gemma import DiffusionGemmaGenerationConfig
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
)

from mlx_dgemma import GenerationConfig, generate_text
from mlx_dgemma.diffusion import vocabulary
from tests.conftest import CANVAS, WINDOW, ReplayedNoise


def inverse_cdf(probabilities: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return (probabilities.cumsum(-1) < u[:, None]).sum(-1, keepdim=True).clamp(max=probabilities.shape[-1] - 1)


@pytest.fixture
def reference_noise(monkeypatch):
    """Makes the reference draw from a ReplayedNoise: tokens for canvases, one uniform a position for proposals."""

    def install(seed: int) -> ReplayedNoise:
        noise = ReplayedNoise(seed, convert=torch.tensor)

        def initialize_canvas(sampler, batch_size, device):
            return noise.tokens((batch_size, sampler.canvas_length))

        def multinomial(probabilities, num_samples):
            return inverse_cdf(probabilities, noise.uniform((1, len(probabilities)))[0])

        monkeypatch.setattr(EntropyBoundSampler, "initialize_canvas", initialize_canvas)
        monkeypatch.setattr(torch, "multinomial", multinomial)
        return noise

    return install


def reference_generate(reference, prompt, **settings):
    bound = EntropyBoundSamplerConfig(entropy_bound=settings.pop("entropy_bound"))
    shown = settings.pop("shown", {})
    config = DiffusionGemmaGenerationConfig(
        max_new_tokens=3 * CANVAS, t_min=0.4, t_max=0.8, sampler_config=bound, **settings
    )
    out = reference.generate(torch.tensor([prompt]), generation_config=config, **shown)
    return out.sequences[0, len(prompt) :].tolist()


SETTINGS = [
    # never stops early; stops once stable; needs two equal predecessors; stops where confident, stable or not
    dict(max_denoising_steps=5, entropy_bound=0.1, confidence_threshold=0.005, stability_threshold=1),
    dict(max_denoising_steps=16, entropy_bound=3.0, confidence_threshold=1.0, stability_threshold=1),
    dict(max_denoising_steps=16, entropy_bound=8.0, confidence_threshold=1.0, stability_threshold=2),
    dict(max_denoising_steps=9, entropy_bound=8.0, confidence_threshold=0.5, stability_threshold=0),
]


@pytest.mark.parametrize(("length", "block"), [(1, 8192), (WINDOW, 48), (4 * WINDOW, 17)])
@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_three_canvases_token_for_token(model, reference, reference_noise, settings, length, block, monkeypatch):
    monkeypatch.setattr(vocabulary, "BLOCK", block)  # of 120 ids: all at once, in three blocks, in eight
    monkeypatch.setattr(vocabulary, "GROUP", 8)
    prompt = [(7 * i + 3) % 120 for i in range(length)]
    theirs = reference_noise(length)
    expected = reference_generate(reference, prompt, eos_token_id=None, **settings)
    ours = ReplayedNoise(length)
    config = GenerationConfig(max_new_tokens=3 * CANVAS, eos_token_id=[], **settings)
    result = generate_text(model, None, prompt, config, noise=ours)
    assert result.tokens == expected
    assert ours.draws == theirs.draws  # in step to the last draw
    assert len(result.steps_per_canvas) == 3
    assert result.finish_reason == "length"


def test_early_stopping_happens_in_these_settings(model):
    """Guards the comparison above: some canvases must stop before the last step, some must not."""
    steps = []
    for settings in SETTINGS:
        config = GenerationConfig(max_new_tokens=3 * CANVAS, eos_token_id=[], **settings)
        result = generate_text(model, None, [3, 10, 17], config, noise=ReplayedNoise(1))
        steps.append([n < settings["max_denoising_steps"] for n in result.steps_per_canvas])
    assert not any(steps[0]) and all(any(row) for row in steps[1:])


def test_stop_token_ends_both_at_the_same_place(model, reference, reference_noise):
    settings = SETTINGS[1]
    prompt = [5, 6, 7, 8]
    free = generate_text(
        model, None, prompt, GenerationConfig(max_new_tokens=48, eos_token_id=[], **settings), noise=ReplayedNoise(9)
    )
    stop = free.tokens[CANVAS + 5]  # some token of the second canvas
    reference_noise(9)
    expected = reference_generate(reference, prompt, eos_token_id=[stop], pad_token_id=0, **settings)
    config = GenerationConfig(max_new_tokens=48, eos_token_id=[stop], **settings)
    result = generate_text(model, None, prompt, config, noise=ReplayedNoise(9))
    assert result.finish_reason == "stop"
    assert result.tokens == expected[: expected.index(stop)]
    assert stop not in result.tokens
