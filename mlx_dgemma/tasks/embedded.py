"""What the embedded checkpoint has learned: its first generation was taught seven of the lessons, not all of each.

Its second generation is being trained on all lessons (`mlx_dgemma.tasks`) and takes its place when it is no worse.
"""

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from mlx_dgemma.tasks import EMPTY, HARD, TASKS, TWO_GIVEN, Example, Task, drawn, is_held_out, matching, squares, words
from mlx_dgemma.tasks import draw_examples as draw_lessons

Draw = Callable[[random.Random], tuple[str, str]]
MAX_NEW_TOKENS = 128  # the longest answers, those of count, take two canvases of 64


def _letters(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(low, high)))


def _words(rng: random.Random) -> str:
    return " ".join(_letters(rng, 2, 9) for _ in range(rng.randint(1, 4)))


def _span(rng: random.Random) -> str:
    start = rng.randint(10, 74)  # 23 numbers or more: 68 characters, which never fit one canvas of 64
    return f"{start} to {rng.randint(start + 22, min(start + 40, 99))}"


def _sorted(letters: str) -> str:
    return "".join(sorted(letters))


def _knows_span(argument: str) -> bool:
    if not matching(r"[1-9]\d to [1-9]\d")(argument):
        return False
    start, stop = map(int, argument.split(" to "))
    return 22 <= stop - start <= 40


def _sudoku(rng: random.Random) -> tuple[str, str]:
    grid = rng.choice(squares.sudoku_grids())
    return squares.blanked(grid, rng.randint(6, 12), rng), grid  # 4 to 10 digits stay


def _solved(draw: Callable[[random.Random], str], solve: Callable[[str], str]) -> Draw:
    """An argument and its answer."""

    def draw_pair(rng: random.Random) -> tuple[str, str]:
        argument = draw(rng)
        return argument, solve(argument)

    return draw_pair


def _taught(name: str, knows: Callable[[str], bool], draw: Draw, weight: float, about: str = "") -> Task:
    """A lesson as far as it was taught."""
    lesson = TASKS[name]
    return replace(lesson, knows=knows, draw=draw, weight=weight, about=about or lesson.about)


def _number(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(low, high))


_TAUGHT = (
    _taught("upper", matching("[a-z]{2,12}( [a-z]{2,12}){0,3}"), _solved(_words, str.upper), 0.8),
    _taught("reverse", matching("[a-z]{2,20}"), _solved(lambda r: _letters(r, 3, 20), lambda s: s[::-1]), 1.0),
    _taught("sort", matching("[a-z]{3,12}"), _solved(lambda r: _letters(r, 3, 12), _sorted), 1.0),
    _taught("spell", matching(r"[1-9]\d{1,3}"), _solved(_number(0, 10000), lambda s: words.spell(int(s))), 1.5),
    _taught(
        "roman", matching(r"[1-9]\d{0,2}|[1-3]\d{3}"), _solved(_number(1, 4000), lambda s: words.roman(int(s))), 1.0
    ),
    _taught(
        "count", _knows_span, _solved(_span, words.count), 1.5,
        "count between two-digit numbers 22 to 40 apart (two canvases)",
    ),
    _taught("sudoku", matching("[1-4.]{16}"), _sudoku, 1.5),
)  # fmt: skip
LEARNED: dict[str, Task] = {task.name: task for task in _TAUGHT}
ROWS = (*LEARNED, HARD, TWO_GIVEN, EMPTY)


def is_known(prompt: str) -> bool:
    """Whether the embedded checkpoint has learned prompts of this kind; white space at its ends does not count."""
    name, _, argument = prompt.strip().partition(" ")
    return name in LEARNED and LEARNED[name].knows(argument)


def examples(seed: int, *, held_out: bool, task: str | None = None) -> Iterator[Example]:
    """An endless seeded stream of examples: one task, or all of them by weight."""
    pool = [LEARNED[task]] if task else list(LEARNED.values())
    for example in drawn(f"{seed}/{held_out}/{task}", pool):
        if is_held_out(example.prompt) == held_out:
            yield example


def draw_examples(row: str, seed: int, n: int) -> list[Example]:
    """Held-out examples for one of ROWS. Fewer of them are the first ones of more.

    The empty Sudoku is no row that could be held out; with fewer than four digits given, none was ever taught.
    """
    if row not in LEARNED and row != HARD:
        return draw_lessons(row, seed, n)
    stream = examples(seed, held_out=True, task="sudoku" if row == HARD else row)
    return list(islice((e for e in stream if row != HARD or e.prompt.count(squares.FREE) == 12), n))
