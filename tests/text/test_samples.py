"""Several samples at once: equal to single runs, ranked, one prefill."""

import numpy as np
import pytest

from mlx_dgemma import CanvasPlan, GenerationConfig, generate_text, load, stream_generate
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.events import Sample
from mlx_dgemma.text.shortcuts import generate_samples, stream_samples
from mlx_dgemma.text.template import parse_template
from tests.conftest import CANVAS


@pytest.fixture(scope="module")
def embedded():
    return load()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("sudoku 1..4..1.2....3.1", {}),  # rows need different numbers of steps
        ("count 18 to 50", {}),  # two canvases
        ("roman 3", {"eos_token_id": [], "max_new_tokens": 150, "max_denoising_steps": 3}),  # ends with the length
    ],
)
def test_each_sample_is_the_single_run_of_its_seed(embedded, prompt, settings):
    model, tokenizer = embedded
    config = GenerationConfig(**settings)
    samples = generate_samples(model, tokenizer, prompt, config, n=5, seed=40)
    assert sorted(sample.seed for sample in samples) == [40, 41, 42, 43, 44]
    for sample in samples:
        alone = generate_text(model, tokenizer, prompt, config, seed=sample.seed)
        for name in ("text", "tokens", "canvases", "steps_per_canvas", "finish_reason"):
            assert getattr(sample.result, name) == getattr(alone, name)


def test_rows_that_end_early_leave_the_batch(model):
    # a random model without text: each row meets a stop token where chance puts it; a batch rounds differently, and
    # seeds are chosen at which no near tie of the router turns on that
    config = GenerationConfig(max_denoising_steps=3, max_new_tokens=8 * CANVAS, eos_token_id=list(range(1, 5)))
    events = list(stream_samples(model, None, [5, 6], config, n=8, seed=30))
    sizes = [event.canvas.shape[0] for event in events if isinstance(event, DenoisingStep)]
    samples = [event for event in events if isinstance(event, Sample)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 2, sizes
    for sample in samples:
        alone = generate_text(model, None, [5, 6], config, seed=sample.seed)
        assert sample.result.canvases == alone.canvases and sample.result.tokens == alone.tokens


def test_rows_that_are_done_draw_no_more_noise(embedded):
    # else the next canvas of a row that ended early would start from other noise than its single run's
    prompt, config = "sudoku 1...............", GenerationConfig(eos_token_id=[], max_new_tokens=2 * 64)
    events = list(stream_samples(*embedded, prompt, config, n=4, seed=41))
    steps = [event for event in events if isinstance(event, DenoisingStep)]
    lengths = {tuple(event.result.steps_per_canvas) for event in events if isinstance(event, Sample)}
    assert len({first for first, _ in lengths}) > 1, "rows must end at different steps"
    second = next(event.canvas for event in steps if event.canvas_index == 1)
    for row in range(4):
        alone = stream_generate(*embedded, prompt, config, seed=41 + row)
        canvas = next(e.canvas for e in alone if isinstance(e, DenoisingStep) and e.canvas_index == 1)
        assert second[row].tolist() == canvas[0].tolist()


def test_best_first_by_the_mean_log_probability_of_the_text(embedded):
    model, tokenizer = embedded
    config = GenerationConfig(max_denoising_steps=2)
    samples = generate_samples(model, tokenizer, "sudoku 1..4..1.2....3.1", config, n=6)
    means = [sample.mean_log_p for sample in samples]
    assert means == sorted(means, reverse=True) and means[0] < 0 and len(set(means)) > 1
    for sample in samples:
        events = list(stream_generate(model, tokenizer, "sudoku 1..4..1.2....3.1", config, seed=sample.seed))
        step, text = events[-2], events[-1]
        log_p = np.array(step.log_p)[0, : len(text.tokens) + (text.finish_reason == "stop")]
        assert sample.mean_log_p == pytest.approx(log_p.mean(), abs=1e-4)


def test_the_prompt_is_encoded_once(embedded, monkeypatch):
    model, tokenizer = embedded
    shapes, encode = [], DiffusionGemma.encode
    monkeypatch.setattr(
        DiffusionGemma, "encode", lambda self, ids, cache: shapes.append(ids.shape) or encode(self, ids, cache)
    )
    generate_samples(model, tokenizer, "roman 3", n=4)
    assert [shape[0] for shape in shapes] == [1]


def test_samples_can_be_steered(embedded):
    model, tokenizer = embedded
    plan = CanvasPlan(parse_template(tokenizer, "one thousand {}", [], 64))
    for sample in generate_samples(model, tokenizer, "spell 1842", n=3, canvas=plan):
        assert sample.result.text == "one thousand eight hundred forty-two" and sample.mean_log_p < 0
    whole = parse_template(tokenizer, "abc", model.generation_config.eos_token_id, 64)
    (given,) = generate_samples(model, tokenizer, "spell 1842", n=1, canvas=whole)
    assert (given.result.text, given.mean_log_p, given.result.steps_per_canvas) == ("abc", 0.0, [0])


@pytest.mark.parametrize("n", [0, -1, 1.0, True])
def test_the_number_of_samples_is_checked(embedded, n):
    with pytest.raises(DGemmaError, match="number of samples must be an integer from 1 on"):
        stream_samples(*embedded, "roman 3", n=n)
