"""The embedded checkpoint: how large it is, and what it answers."""

import pytest

from mlx_dgemma import GenerationConfig, generate_text, load
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.demo.batches import CANVAS
from mlx_dgemma.tasks import HARD
from mlx_dgemma.tasks.embedded import LEARNED, MAX_NEW_TOKENS, draw_examples


@pytest.fixture(scope="module")
def embedded():
    return load()


def test_size_of_the_checkpoint():
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 8_000_000


@pytest.mark.slow
@pytest.mark.parametrize("row", LEARNED)
def test_the_embedded_checkpoint_answers(embedded, row):
    config, chosen = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS), draw_examples(row, 3, 12)
    texts = [generate_text(*embedded, e.prompt, config, seed=i).text for i, e in enumerate(chosen)]
    right = sum(e.task.check(e.prompt, text) for e, text in zip(chosen, texts, strict=True))
    assert right >= 10


@pytest.mark.parametrize("task", LEARNED.values(), ids=LEARNED)
def test_the_examples_in_the_help_are_answered(embedded, task):
    prompt = task.prompt(task.example)
    assert task.check(prompt, generate_text(*embedded, prompt).text)


@pytest.mark.slow
def test_hard_sudokus_need_more_denoising_steps_than_easy_tasks(embedded):
    def run(row: str, **settings) -> tuple[float, int]:
        chosen = draw_examples(row, 4, 20)
        config = GenerationConfig(max_new_tokens=CANVAS, **settings)
        results = [generate_text(*embedded, e.prompt, config, seed=i) for i, e in enumerate(chosen)]
        right = sum(e.task.check(e.prompt, r.text) for e, r in zip(chosen, results, strict=True))
        return sum(r.stats.steps for r in results) / len(results), right

    steps, right = run(HARD)
    assert steps > 2 * run("upper")[0] and steps > 4
    assert run(HARD, max_denoising_steps=3)[1] < right - 3  # and they cannot do without
