"""Tasks: right answers known by heart, what is drawn, what is known, and what training never sees."""

import os
import random
import re
import subprocess
import sys
from itertools import islice, pairwise

import pytest

from mlx_dgemma.tasks import (
    EMPTY,
    HARD,
    MAX_NEW_TOKENS,
    ROWS,
    SHORTEST,
    TASKS,
    draw_examples,
    examples,
    is_held_out,
    is_known,
    squares,
    words,
)


def test_answers_known_by_heart():
    assert words.spell(0) == "zero" and words.spell(40) == "forty"
    assert words.spell(9999) == "nine thousand nine hundred ninety-nine" and words.spell(1015) == "one thousand fifteen"
    assert words.roman(1994) == "MCMXCIV" and words.roman(3888) == "MMMDCCCLXXXVIII"
    assert words.count("8 to 11") == "8 9 10 11"
    assert words.running_sums("3142") == "3+1=4+4=8+2=0" and words.running_sums("7") == "7"
    assert words.add("12 7 30") == "49" and words.add_step_by_step("12 7 30") == "12+7=19\n19+30=49"
    assert words.json_object("name ann age 31") == '{"name": "ann", "age": 31}'
    assert len(set(squares.sudoku_grids())) == 288


@pytest.mark.parametrize(
    ("prompt", "answer", "right"),
    [
        ("shuffle red green blue", "blue red green", True),
        ("shuffle red green blue", "blue red red", False),
        ("shuffle red green blue", "blue red", False),
        ("shuffle red green blue", "blue red  green", False),
        ("sudoku 1" + "." * 15, "1234341221434321", True),
        ("sudoku 2" + "." * 15, "1234341221434321", False),  # a clue is gone
        ("sudoku " + "." * 16, "1234341221434312", False),  # two of the same in a column
        ("sudokus " + " ".join(["." * 16] * 3), " ".join(["1234341221434321"] * 3), True),
        ("sudokus " + " ".join(["." * 16] * 3), " ".join(["1234341221434321"] * 2), False),
        ("latin 1" + "." * 35, "123456231564312645456123564231645312", True),
        ("latin 2" + "." * 35, "123456231564312645456123564231645312", False),
        ("latin " + "." * 36, "123456" * 6, False),
        ("add 99 99 99 99", "396", True),
        ("sort ba", "ab", True),
    ],
)
def test_any_right_answer_is_right_and_no_other(prompt, answer, right):
    assert TASKS[prompt.split(" ")[0]].check(prompt, answer) == right
    assert is_known(prompt)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_is_drawn_is_known_right_and_fits(task):
    drawn = list(islice(examples(0, held_out=True, task=task.name), 40))
    for example in drawn:
        assert is_held_out(example.prompt) and is_known(example.prompt)
        assert task.check(example.prompt, example.answer)
        assert not task.check(example.prompt, example.answer + "x")
        assert not task.check(example.prompt, "")
        assert len(example.answer) < MAX_NEW_TOKENS
        assert (example.prompt + example.answer).isascii()
    assert len({example.prompt for example in drawn}) > 25
    assert task.knows(task.example)
    training = list(islice(examples(0, held_out=False, task=task.name), 100))
    assert not any(is_held_out(e.prompt) for e in training)


@pytest.mark.parametrize(
    "prompt",
    [
        "", "upper", "upper ", "upper ABC", "upper a  b", "spell 10000", "spell 007", "spell -1", "roman 0",
        "roman 4000", "count 9 to 3", "count 0 to 3", "count 5 to 100", "sudoku 1234", "latin " + "7" * 36,
        "shuffle one", "sums 3 4", "add 5", "add 1 2 3 4 5", "add 100 1", "json name", "json a 1 a 2",
        "json name ann age", "what is love",
    ],
)  # fmt: skip
def test_what_it_has_not_learned_is_not_known(prompt):
    assert not is_known(prompt)


def test_the_same_seed_makes_the_same_examples():
    first, again, other = ([e.prompt for e in islice(examples(s, held_out=False), 30)] for s in (1, 1, 2))
    assert first == again != other


def test_the_same_seed_makes_the_same_examples_in_every_process():
    """Texts hash otherwise in each, so that nothing drawn may hang on the order of a set."""
    code = (
        "from mlx_dgemma.tasks import ROWS, draw_examples as draw; "
        "print([(e.prompt, e.answer) for row in ROWS for e in draw(row, 1, 3)])"
    )
    drawn = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    assert drawn[0].returncode == 0 and drawn[0].stdout == drawn[1].stdout != b""


def test_a_twentieth_is_held_out_but_for_the_shortest_and_the_empty():
    rng = random.Random(0)
    prompts = [f"reverse {words.draw_letters(rng, 3, 20)}" for _ in range(4000)]
    assert 150 < sum(map(is_held_out, prompts)) < 250
    assert not any(is_held_out(f"spell {n}") for n in range(100))
    assert not is_held_out("sudoku " + "." * 16)
    assert not is_held_out("sudokus " + " ".join(["." * 16] * 3))


def test_lengths_are_drawn_first():
    """So that arguments of one or two characters are as common as any other length."""
    for name, most in (("spell", 4), ("sort", 12), ("reverse", 20), ("roman", 4)):
        lengths = [len(e.argument) for e in islice(examples(0, held_out=False, task=name), 2000)]
        for n in range(1, most + 1):
            assert 0.5 < lengths.count(n) * most / 2000 < 1.7, (name, n)


def test_rows_have_what_they_say():
    for row, name, fits in (
        (HARD, "sudoku", lambda e: e.argument.count(".") == 12),
        ("sudoku with 2 given", "sudoku", lambda e: e.argument.count(".") == 14),
        (EMPTY, "sudoku", lambda e: e.argument == "." * 16),
        ("sums over a canvas", "sums", lambda e: 50 <= len(e.answer) <= 61),
        ("shuffle over a canvas", "shuffle", lambda e: 45 <= len(e.answer) <= 60),
        ("count over four canvases", "count", lambda e: len(e.answer) > 192),
    ):
        for example in draw_examples(row, 7, 5):
            assert example.task.name == name and fits(example), row
            assert row == EMPTY or is_held_out(example.prompt)
            assert example.task.check(example.prompt, example.answer)


def test_the_row_of_shortest_arguments_has_every_task_that_takes_one():
    drawn = draw_examples(SHORTEST, 0, 200)
    assert all(1 <= len(e.argument) <= 2 and is_known(e.prompt) for e in drawn)
    assert {e.task.name for e in drawn} == {"upper", "reverse", "sort", "spell", "roman", "sums"}


def test_fewer_questions_are_the_first_ones_of_more():
    for row in ROWS:
        assert draw_examples(row, 3, 2) == draw_examples(row, 3, 4)[:2]


def test_thoughts_work_a_sum_out():
    add = TASKS["add"]
    for example in islice(examples(0, held_out=True, task="add"), 20):
        lines = add.think(example.argument).split("\n")
        totals = [re.fullmatch(r"(\d+)\+(\d+)=(\d+)", line).groups() for line in lines]
        assert [int(a) + int(b) == int(c) for a, b, c in totals] == [True] * len(lines)
        assert all(before[2] == after[0] for before, after in pairwise(totals))
        assert totals[-1][2] == example.answer
