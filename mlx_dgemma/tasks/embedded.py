"""What the embedded checkpoint has learned: its first generation was taught seven of the lessons, not all of each.

Its second generation is being trained on all lessons (`mlx_dgemma.tasks`) and takes its place when it is no worse.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from mlx_dgemma import tasks as lessons
from mlx_dgemma.tasks import (
    EMPTY,
    HARD,
    TASKS,
    TWO_GIVEN,
    DrawPair,
    Example,
    Task,
    given,
    matching,
    solved,
    squares,
    words,
)

MAX_NEW_TOKENS = 128  # the longest answers, those of count, take two canvases of 64


def _words(rng: random.Random) -> str:
    return " ".join(words.draw_letters(rng, 2, 9) for _ in range(rng.randint(1, 4)))


def _span(rng: random.Random) -> str:
    start = rng.randint(10, 74)  # 23 numbers or more: 68 characters, which never fit one canvas of 64
    return f"{start} to {rng.randint(start + 22, min(start + 40, 99))}"


def _knows_span(argument: str) -> bool:
    if not matching(r"[1-9]\d to [1-9]\d")(argument):
        return False
    start, stop = map(int, argument.split(" to "))
    return 22 <= stop - start <= 40


def _sudoku(rng: random.Random) -> tuple[str, str]:
    grid = rng.choice(squares.sudoku_grids())
    return squares.blanked(grid, rng.randint(6, 12), rng), grid  # 4 to 10 digits stay


def _taught(name: str, knows: Callable[[str], bool], draw: DrawPair, weight: float, about: str = "") -> Task:
    """A lesson as far as it was taught."""
    lesson = TASKS[name]
    return replace(lesson, knows=knows, draw=draw, weight=weight, about=about or lesson.about)


def _number(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(low, high))


_TAUGHT = (
    _taught("upper", matching("[a-z]{2,12}( [a-z]{2,12}){0,3}"), solved(_words, str.upper), 0.8),
    _taught("reverse", matching("[a-z]{2,20}"), solved(lambda r: words.draw_letters(r, 3, 20), lambda s: s[::-1]), 1.0),
    _taught("sort", matching("[a-z]{3,12}"), solved(lambda r: words.draw_letters(r, 3, 12), words.in_order), 1.0),
    _taught("spell", matching(r"[1-9]\d{1,3}"), solved(_number(0, 10000), lambda s: words.spell(int(s))), 1.5),
    _taught(
        "roman", matching(r"[1-9]\d{0,2}|[1-3]\d{3}"), solved(_number(1, 4000), lambda s: words.roman(int(s))), 1.0
    ),
    _taught(
        "count", _knows_span, solved(_span, words.count), 1.5,
        "count between two-digit numbers 22 to 40 apart (two canvases)",
    ),
    _taught("sudoku", matching("[1-4.]{16}"), _sudoku, 1.5),
)  # fmt: skip
LEARNED: dict[str, Task] = {task.name: task for task in _TAUGHT}
ROWS = (*LEARNED, HARD, TWO_GIVEN, EMPTY)


def is_known(prompt: str) -> bool:
    """Whether the embedded checkpoint has learned prompts of this kind; white space at its ends does not count."""
    return lessons.is_known(prompt, LEARNED)


def examples(seed: int, *, held_out: bool, task: str | None = None) -> Iterator[Example]:
    """An endless seeded stream of examples: one task, or all of them by weight."""
    return lessons.examples(seed, held_out=held_out, task=task, tasks=LEARNED)


def draw_examples(row: str, seed: int, n: int) -> list[Example]:
    """Held-out examples for one of ROWS. Fewer of them are the first ones of more.

    The empty Sudoku is no row that could be held out; with fewer than four digits given, none was ever taught.
    """
    if row == HARD:
        return list(islice(filter(given(4), examples(seed, held_out=True, task="sudoku")), n))
    if row in LEARNED:
        return list(islice(examples(seed, held_out=True, task=row), n))
    return lessons.draw_examples(row, seed, n)
