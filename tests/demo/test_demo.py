"""The embedded checkpoint: its tasks, what it answers, and that the training script trains something we can load."""

import itertools

import pytest
import torch

from mlx_dgemma import GenerationConfig, generate_text, load
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.demo import training
from mlx_dgemma.tasks import HARD, TASKS, count, draw_examples, examples, is_held_out, roman, spell, sudoku_grids


@pytest.fixture(scope="module")
def embedded():
    return load()


def test_answers_known_by_heart():
    assert spell(0) == "zero" and spell(40) == "forty" and spell(9999) == "nine thousand nine hundred ninety-nine"
    assert spell(1015) == "one thousand fifteen"
    assert roman(1994) == "MCMXCIV" and roman(3888) == "MMMDCCCLXXXVIII"
    assert count(8, 11) == "8 9 10 11"
    assert len(set(sudoku_grids())) == 288


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_examples_check_out_and_wrong_answers_do_not(task):
    for example in itertools.islice(examples(0, held_out=True, task=task.name), 20):
        assert task.check(example.prompt, example.answer)
        assert not task.check(example.prompt, example.answer + "x")
        assert not task.check(example.prompt, "")
        assert is_held_out(example.prompt)
    training = itertools.islice(examples(0, held_out=False, task=task.name), 100)
    assert not any(is_held_out(e.prompt) for e in training)


def test_a_sudoku_may_have_several_answers_but_each_keeps_the_clues():
    task = TASKS["sudoku"]
    solutions = task.solutions("1" + "." * 15)
    assert len(solutions) == 72 and all(task.check("sudoku 1" + "." * 15, s) for s in solutions)
    assert not task.check("sudoku 2" + "." * 15, solutions[0])


def test_count_needs_two_canvases():
    assert all(len(e.answer) > training.CANVAS for e in itertools.islice(examples(0, held_out=True, task="count"), 50))


def test_the_same_seed_makes_the_same_examples():
    first, again, other = ([e.prompt for e in itertools.islice(examples(s, held_out=False), 30)] for s in (1, 1, 2))
    assert first == again != other


def test_size_of_the_checkpoint():
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 8_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_embedded_checkpoint_answers(embedded, name):
    chosen = list(itertools.islice(examples(3, held_out=True, task=name), 12))
    right = sum(e.task.check(e.prompt, generate_text(*embedded, e.prompt, seed=i).text) for i, e in enumerate(chosen))
    assert right >= 10


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_examples_in_the_help_are_answered(embedded, task):
    prompt = task.prompt(task.example)
    assert task.check(prompt, generate_text(*embedded, prompt).text)


@pytest.mark.slow
def test_hard_sudokus_need_more_denoising_steps_than_easy_tasks(embedded):
    def run(row: str, **settings) -> tuple[float, int]:
        chosen = draw_examples(row, 4, 20)
        config = GenerationConfig(max_new_tokens=training.CANVAS, **settings)
        results = [generate_text(*embedded, e.prompt, config, seed=i) for i, e in enumerate(chosen)]
        right = sum(e.task.check(e.prompt, r.text) for e, r in zip(chosen, results, strict=True))
        return sum(r.stats.steps for r in results) / len(results), right

    steps, right = run(HARD)
    assert steps > 2 * run("upper")[0] and steps > 4
    assert run(HARD, max_denoising_steps=3)[1] < right - 3  # and they cannot do without


@pytest.mark.slow
def test_training_learns_and_saves_what_we_load(tmp_path):
    torch.manual_seed(0)
    model = training.DiffusionGemmaForBlockDiffusion._from_config(training.model_config())
    optimizers, data = training.make_optimizers(model), training.batches(0, 4, 0.3)
    losses = []
    for _ in range(12):
        denoiser, encoder = training.training_loss(model, next(data))
        (denoiser + encoder).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(denoiser.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    training.save(model, tmp_path)
    ours, tokenizer = load(tmp_path)
    assert generate_text(ours, tokenizer, "upper x").steps_per_canvas


def test_orthogonalise_gives_singular_values_near_one():
    stack = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(training.orthogonalise(stack))
    assert singular.min() > 0.5 and singular.max() < 1.5
