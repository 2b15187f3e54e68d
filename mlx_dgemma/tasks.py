"""Verifiable tasks of the embedded checkpoint: each makes (prompt, answer) pairs and checks any answer to a prompt.

Pure Python and seeded: the trainer, the evaluation table and the tests all draw from here. A fixed twentieth of all
prompts (by CRC-32) is held out: the trainer never sees them, the evaluation uses nothing else.
"""

import random
import re
import string
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice, permutations

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_ROMAN = tuple(zip(
    (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
    "M CM D CD C XC L XL X IX V IV I".split(),
    strict=True,
))  # fmt: skip


def spell(n: int) -> str:
    """English words of 0 ≤ n < 10,000: 342 -> "three hundred forty-two"."""
    if n >= 1000:
        return _join(spell(n // 1000) + " thousand", n % 1000)
    if n >= 100:
        return _join(_ONES[n // 100] + " hundred", n % 100)
    if n >= 20:
        return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    return _ONES[n]


def _join(head: str, rest: int) -> str:
    return f"{head} {spell(rest)}" if rest else head


def roman(n: int) -> str:
    """Roman numeral of 1 ≤ n < 4,000."""
    text = ""
    for value, letters in _ROMAN:
        text += letters * (n // value)
        n %= value
    return text


def count(start: int, stop: int) -> str:
    """The integers from start to stop, both included, separated by spaces."""
    return " ".join(map(str, range(start, stop + 1)))


@cache
def sudoku_grids() -> tuple[str, ...]:
    """All 288 solved 4×4 Sudokus as 16 digits, row by row."""
    rows = ["".join(p) for p in permutations("1234")]
    return tuple(a + b + c + d for a in rows for b in rows for c in rows for d in rows if _solved(a + b + c + d))


def _solved(grid: str) -> bool:
    cells = range(4)
    units = [grid[4 * i : 4 * i + 4] for i in cells] + [grid[i::4] for i in cells]
    units += [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    return len(grid) == 16 and all(sorted(unit) == ["1", "2", "3", "4"] for unit in units)


def keeps(puzzle: str, grid: str) -> bool:
    """Whether a grid has every given digit of the puzzle ("." is free)."""
    return len(puzzle) == len(grid) and all(p in (".", g) for p, g in zip(puzzle, grid, strict=True))


def _letters(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(low, high)))


def _sample_upper(rng: random.Random) -> str:
    return " ".join(_letters(rng, 2, 9) for _ in range(rng.randint(1, 4)))


def _sample_count(rng: random.Random) -> str:
    start = rng.randint(10, 74)  # 23 numbers or more: 68 characters, which never fit one canvas of 64
    return f"{start} to {rng.randint(start + 22, min(start + 40, 99))}"


def _sample_sudoku(rng: random.Random) -> str:
    grid = list(rng.choice(sudoku_grids()))
    for cell in rng.sample(range(16), rng.randint(6, 12)):  # 4 to 10 digits stay
        grid[cell] = "."
    return "".join(grid)


@dataclass(frozen=True)
class Task:
    """One kind of question.

    Attributes:
        name: what a prompt begins with.
        about: for a list of tasks.
        example: an argument.
        knows: whether an argument is of the kind that training drew.
        sample: draws an argument.
        solutions: every right answer to one.
        weight: share of training, relative to the other tasks.
    """

    name: str
    about: str
    example: str
    knows: Callable[[str], bool]
    sample: Callable[[random.Random], str]
    solutions: Callable[[str], list[str]]
    weight: float = 1.0

    def prompt(self, argument: str) -> str:
        return f"{self.name} {argument}"

    def check(self, prompt: str, answer: str) -> bool:
        """Whether `answer` is right for `prompt`; a Sudoku may have several right answers."""
        return answer in self.solutions(prompt.removeprefix(f"{self.name} "))


def _like(pattern: str) -> Callable[[str], bool]:
    return lambda argument: re.fullmatch(pattern, argument) is not None


def _knows_count(argument: str) -> bool:
    ends = re.fullmatch(r"([1-9]\d) to ([1-9]\d)", argument)
    return ends is not None and 22 <= int(ends[2]) - int(ends[1]) <= 40


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("upper", "capital letters", "hello world", _like("[a-z]{2,12}( [a-z]{2,12}){0,3}"), _sample_upper,
             lambda s: [s.upper()], 0.8),
        Task("reverse", "the letters backwards", "canvas", _like("[a-z]{2,20}"), lambda r: _letters(r, 3, 20),
             lambda s: [s[::-1]]),
        Task("sort", "the letters in order", "diffusion", _like("[a-z]{3,12}"), lambda r: _letters(r, 3, 12),
             lambda s: ["".join(sorted(s))]),
        Task("spell", "a number below 10000 in words", "1842", _like(r"[1-9]\d{1,3}"),
             lambda r: str(r.randrange(10000)), lambda s: [spell(int(s))], 1.5),
        Task("roman", "a number below 4000 in Roman numerals", "1994", _like(r"[1-9]\d{0,2}|[1-3]\d{3}"),
             lambda r: str(r.randrange(1, 4000)), lambda s: [roman(int(s))]),
        Task("count", "count between two-digit numbers 22 to 40 apart (two canvases)", "18 to 50", _knows_count,
             _sample_count, lambda s: [count(*map(int, s.split(" to ")))], 1.5),
        Task("sudoku", "a 4x4 Sudoku, row by row (many denoising steps)", "1..4..1.2....3.1", _like("[1-4.]{16}"),
             _sample_sudoku, lambda s: [grid for grid in sudoku_grids() if keeps(s, grid)], 1.5),
    )
}  # fmt: skip


def is_known(prompt: str) -> bool:
    """Whether the embedded checkpoint has learned prompts of this kind; white space at its ends does not count."""
    name, _, argument = prompt.strip().partition(" ")
    return name in TASKS and TASKS[name].knows(argument)


HARD = "sudoku with 4 given"  # the hardest puzzles of the task, in a row of their own
ROWS = (*TASKS, HARD)
MAX_NEW_TOKENS = 128  # the longest answers, those of count, take two canvases of 64


@dataclass(frozen=True)
class Example:
    task: Task
    prompt: str
    answer: str


def is_held_out(prompt: str) -> bool:
    """A fixed twentieth of all prompts, which training never sees."""
    return zlib.crc32(prompt.encode()) % 20 == 0


def examples(seed: int, *, held_out: bool, task: str | None = None) -> Iterator[Example]:
    """An endless seeded stream of examples: one task, or all of them by weight."""
    rng = random.Random(f"{seed}/{held_out}/{task}")
    pool = [TASKS[task]] if task else list(TASKS.values())
    weights = [t.weight for t in pool]
    while True:
        chosen = rng.choices(pool, weights)[0]
        argument = chosen.sample(rng)
        prompt = chosen.prompt(argument)
        if is_held_out(prompt) == held_out:
            yield Example(chosen, prompt, rng.choice(chosen.solutions(argument)))


def draw_examples(row: str, seed: int, n: int) -> list[Example]:
    """Held-out examples for a row of a table: a task, or HARD. Fewer of them are the first ones of more."""
    if row != HARD:
        return list(islice(examples(seed, held_out=True, task=row), n))
    puzzles = examples(seed, held_out=True, task="sudoku")
    return list(islice((e for e in puzzles if e.prompt.count(".") == 12), n))
