"""What the embedded checkpoint has learned of the lessons: what is drawn of it, and what a user is told it knows."""

from itertools import islice

import pytest

from mlx_dgemma.tasks import EMPTY, HARD, TASKS, TWO_GIVEN, is_held_out
from mlx_dgemma.tasks.embedded import LEARNED, MAX_NEW_TOKENS, ROWS, draw_examples, examples, is_known


@pytest.mark.parametrize("task", LEARNED.values(), ids=LEARNED)
def test_what_is_drawn_is_known_right_held_out_and_of_the_lesson(task):
    for example in islice(examples(0, held_out=True, task=task.name), 40):
        assert (is_held_out(example.prompt) and is_known(example.prompt)) or example.prompt.split(" ")[
            1
        ] in "0123456789"
        assert task.check(example.prompt, example.answer) and not task.check(example.prompt, example.answer + "x")
        assert TASKS[task.name].knows(example.argument) and len(example.answer) < MAX_NEW_TOKENS


@pytest.mark.parametrize(
    "prompt", ["spell 7", "sort ba", "upper a", "count 1 to 99", "json a 1", "sums 12", "sudoku 1"]
)
def test_what_was_not_taught_is_not_known(prompt):
    assert not is_known(prompt)


def test_count_needs_two_canvases():
    assert all(64 < len(e.answer) < 128 for e in islice(examples(0, held_out=True, task="count"), 50))


def test_rows_have_what_they_say_and_fewer_are_the_first_ones_of_more():
    for row in ROWS:
        drawn = draw_examples(row, 3, 4)
        assert len(drawn) == 4 and draw_examples(row, 3, 2) == drawn[:2]
    for row, given in ((HARD, 4), (TWO_GIVEN, 2), (EMPTY, 0)):
        assert {16 - e.prompt.count(".") for e in draw_examples(row, 0, 9)} == {given}
