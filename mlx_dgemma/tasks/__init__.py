"""Verifiable tasks, the lessons of the embedded checkpoint: each makes (prompt, answer) pairs and checks any answer.

Pure Python and seeded: the trainer, the evaluation table and the tests all draw from here. Lengths are drawn first and
then contents, so that short arguments are as common as long ones. A fixed twentieth of all prompts (by CRC-32) is held
out: the trainer never sees them, the evaluation uses nothing else. Of arguments below three characters there are too
few to hold any out, as there is only one empty Sudoku.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from mlx_dgemma.tasks import squares, words

Draw = Callable[[random.Random], str]
DrawPair = Callable[[random.Random], tuple[str, str]]


@dataclass(frozen=True)
class Task:
    """One kind of question.

    Attributes:
        name: what a prompt begins with.
        about: for a list of tasks.
        example: an argument.
        knows: whether an argument is of the kind that training drew.
        draw: an argument and one right answer to it.
        solves: whether an answer is right for an argument.
        weight: share of training, relative to the other tasks.
        think: how an answer is worked out, for a task that thinking helps.
    """

    name: str
    about: str
    example: str
    knows: Callable[[str], bool]
    draw: DrawPair
    solves: Callable[[str, str], bool]
    weight: float = 1.0
    think: Callable[[str], str] | None = None

    def prompt(self, argument: str) -> str:
        return f"{self.name} {argument}"

    def argument(self, prompt: str) -> str:
        return prompt.removeprefix(f"{self.name} ")

    def check(self, prompt: str, answer: str) -> bool:
        """Whether `answer` is right for `prompt`; a Sudoku may have several right answers."""
        return self.solves(self.argument(prompt), answer)


def matching(pattern: str) -> Callable[[str], bool]:
    """Whether all of an argument is of this form."""
    return lambda argument: re.fullmatch(pattern, argument) is not None


def _knows_span(argument: str) -> bool:
    ends = re.fullmatch(r"([1-9]\d?) to ([1-9]\d?)", argument)
    return ends is not None and int(ends[1]) <= int(ends[2])


def _knows_pairs(argument: str) -> bool:
    texts = argument.split(" ")
    pair = r"[a-z]{1,7} ([a-z]{1,8}|0|[1-9]\d{0,3})"
    is_object = matching(f"{pair}( {pair}){{0,3}}")(argument)
    return is_object and len(set(texts[::2])) == len(texts) // 2 and len(words.json_object(argument)) <= 62


def _knows_line(argument: str) -> bool:
    return matching(r"[a-z]{1,8}( [a-z]{1,8}){1,11}")(argument) and len(argument) <= 60


def solved(draw: Draw, solve: Callable[[str], str]) -> DrawPair:
    """Draws an argument and its answer."""

    def draw_pair(rng: random.Random) -> tuple[str, str]:
        argument = draw(rng)
        return argument, solve(argument)

    return draw_pair


def _one(
    name: str, about: str, example: str, pattern: str | Callable[[str], bool], draw: Draw, solve: Callable[[str], str],
    weight: float, think: Callable[[str], str] | None = None,
) -> Task:  # fmt: skip
    """A task with one right answer."""
    knows = matching(pattern) if isinstance(pattern, str) else pattern
    return Task(name, about, example, knows, solved(draw, solve), lambda s, answer: answer == solve(s), weight, think)


def _draw_line(rng: random.Random) -> tuple[str, str]:
    line = words.draw_line(rng)
    return line, words.shuffled(line, rng)


_SUDOKU = "[1-4.]{16}"
_SUMMANDS = r"(0|[1-9]\d?)( (0|[1-9]\d?)){1,3}"
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _one("upper", "capital letters", "hello world", "[a-z]{1,12}( [a-z]{1,12}){0,3}", words.draw_words,
             str.upper, 0.6),
        _one("reverse", "the letters backwards", "canvas", "[a-z]{1,20}", lambda r: words.draw_letters(r, 1, 20),
             lambda s: s[::-1], 0.8),
        _one("sort", "the letters in order", "diffusion", "[a-z]{1,12}", lambda r: words.draw_letters(r, 1, 12),
             words.in_order, 1.0),
        _one("spell", "a number below 10000 in words", "1842", r"0|[1-9]\d{0,3}", lambda r: words.draw_digits(r, 1, 4),
             lambda s: words.spell(int(s)), 1.0),
        _one("roman", "a number below 4000 in Roman numerals", "1994", r"[1-9]\d{0,2}|[1-3]\d{3}", words.draw_roman,
             lambda s: words.roman(int(s)), 0.8),
        _one("count", "count between two numbers from 1 to 99 (up to five canvases)", "18 to 50", _knows_span,
             words.draw_span, words.count, 1.5),
        Task("sudoku", "a 4x4 Sudoku, row by row (many denoising steps)", "1..4..1.2....3.1", matching(_SUDOKU),
             squares.draw_sudokus, squares.solves_sudokus, 1.5),
        Task("sudokus", "three 4x4 Sudokus at once", "...4...23....1.3 1.....1.2..1..2. .......2.2..3.21",
             matching(f"{_SUDOKU} {_SUDOKU} {_SUDOKU}"), lambda r: squares.draw_sudokus(r, 3), squares.solves_sudokus,
             2.0),
        Task("latin", "a 6x6 Latin square, row by row", ".2.5...42...31.2..1....2.3.45.....23", matching("[1-6.]{36}"),
             squares.draw_latin, squares.solves_latin, 2.0),
        Task("shuffle", "the same words in any order", "red green blue", _knows_line, _draw_line,
             words.is_order_of, 1.0),
        _one("sums", "the running sums of digits, modulo 10", "3141592653", r"\d{1,16}",
             words.draw_sequence, words.running_sums, 1.5),
        _one("add", "the sum of two to four numbers below 100 (better with thinking)", "47 82 9", _SUMMANDS,
             words.draw_summands, words.add, 1.5, words.add_step_by_step),
        _one("json", "a JSON object of keys and values", "name ann age 31", _knows_pairs, words.draw_pairs,
             words.json_object, 0.8),
    )
}  # fmt: skip


def is_known(prompt: str, tasks: Mapping[str, Task] = TASKS) -> bool:
    """Whether a prompt is of one of these kinds; white space at its ends does not count."""
    name, _, argument = prompt.strip().partition(" ")
    return name in tasks and tasks[name].knows(argument)


@dataclass(frozen=True)
class Example:
    task: Task
    prompt: str
    answer: str

    @property
    def argument(self) -> str:
        return self.task.argument(self.prompt)


def is_held_out(prompt: str) -> bool:
    """A fixed twentieth of all prompts, which training never sees."""
    argument = prompt.partition(" ")[2]
    is_rare = len(argument) > 2 and argument.strip(squares.FREE) != ""
    return is_rare and zlib.crc32(prompt.encode()) % 20 == 0


def examples(
    seed: int, *, held_out: bool, task: str | None = None, tasks: Mapping[str, Task] = TASKS
) -> Iterator[Example]:  # fmt: skip
    """An endless seeded stream of examples: one of these tasks, or all of them by weight."""
    pool = [tasks[task]] if task else list(tasks.values())
    for example in drawn(f"{seed}/{held_out}/{task}", pool):
        if is_held_out(example.prompt) == held_out:
            yield example


def drawn(seed: str, pool: list[Task]) -> Iterator[Example]:
    """An endless stream of these tasks' examples, by weight."""
    rng = random.Random(seed)
    weights = [task.weight for task in pool]
    while True:
        chosen = rng.choices(pool, weights)[0]
        argument, answer = chosen.draw(rng)
        yield Example(chosen, chosen.prompt(argument), answer)


def given(n: int) -> Callable[[Example], bool]:
    """Whether a Sudoku has so many digits given."""
    return lambda example: example.prompt.count(squares.FREE) == 16 - n


def _is_long(example: Example) -> bool:
    return len(example.answer) > 3 * 64


def _is_full(example: Example) -> bool:
    return len(example.answer) >= 50


HARD = "sudoku with 4 given"
TWO_GIVEN = "sudoku with 2 given"
SHORTEST = "shortest arguments"
# Rows of a table beside the tasks' own: a task, and which of its examples.
_PARTS: dict[str, tuple[str, Callable[[Example], bool]]] = {
    HARD: ("sudoku", given(4)),
    TWO_GIVEN: ("sudoku", given(2)),
    "sums over a canvas": ("sums", _is_full),
    "shuffle over a canvas": ("shuffle", lambda example: len(example.answer) >= 45),
    "count over four canvases": ("count", _is_long),
}
EMPTY = "sudoku with 0 given"  # one prompt with 288 right answers, which cannot be held out
ROWS = (*TASKS, *_PARTS, EMPTY, SHORTEST)
MAX_NEW_TOKENS = 320  # the longest answers, those of count, take five canvases of 64


def draw_examples(row: str, seed: int, n: int) -> list[Example]:
    """Held-out examples for a row of a table: a task or another of ROWS. Fewer of them are the first ones of more.

    Two rows cannot be held out: the empty Sudoku, and arguments of one or two characters.
    """
    if row == EMPTY:
        sudoku = TASKS["sudoku"]
        return [Example(sudoku, sudoku.prompt(squares.FREE * 16), squares.sudoku_grids()[0])] * n
    if row == SHORTEST:
        pool = [task for task in TASKS.values() if task.knows("7") or task.knows("a")]
        return list(islice((e for e in drawn(f"{seed}/{row}", pool) if len(e.argument) <= 2), n))
    task, belongs = _PARTS.get(row, (row, lambda _: True))
    return list(islice(filter(belongs, examples(seed, held_out=True, task=task)), n))
