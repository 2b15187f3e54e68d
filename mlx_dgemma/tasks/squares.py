"""Sudokus and Latin squares: what is right, and how they are drawn. Grids are digits, row by row; "." is free."""

import random
from functools import cache
from itertools import permutations

FREE = "."
ORDER = 6  # of a Latin square


@cache
def sudoku_grids() -> tuple[str, ...]:
    """All 288 solved 4×4 Sudokus as 16 digits, row by row."""
    rows = ["".join(p) for p in permutations("1234")]
    return tuple(a + b + c + d for a in rows for b in rows for c in rows for d in rows if is_sudoku(a + b + c + d))


def is_sudoku(grid: str) -> bool:
    """Whether 16 cells are a solved 4×4 Sudoku."""
    cells = range(4)
    units = [grid[4 * i : 4 * i + 4] for i in cells] + [grid[i::4] for i in cells]
    units += [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    return len(grid) == 16 and all(sorted(unit) == ["1", "2", "3", "4"] for unit in units)


def is_latin(grid: str) -> bool:
    """Whether 36 cells are a Latin square of 1 to 6."""
    units = [grid[ORDER * i : ORDER * i + ORDER] for i in range(ORDER)] + [grid[i::ORDER] for i in range(ORDER)]
    return len(grid) == ORDER**2 and all(sorted(unit) == list("123456") for unit in units)


def keeps(puzzle: str, grid: str) -> bool:
    """Whether a grid has every given digit of the puzzle."""
    return len(puzzle) == len(grid) and all(p in (FREE, g) for p, g in zip(puzzle, grid, strict=True))


def solves_sudokus(puzzles: str, answer: str) -> bool:
    """Whether every one of several Sudokus, separated by spaces, is solved."""
    ours, theirs = puzzles.split(" "), answer.split(" ")
    return len(ours) == len(theirs) and all(is_sudoku(g) and keeps(p, g) for p, g in zip(ours, theirs, strict=True))


def solves_latin(puzzle: str, answer: str) -> bool:
    return is_latin(answer) and keeps(puzzle, answer)


def draw_sudokus(rng: random.Random, n: int = 1) -> tuple[str, str]:
    """So many puzzles and their grids. Of one, 0 to 10 digits stay; of several, 2 to 10 each."""
    grids = [rng.choice(sudoku_grids()) for _ in range(n)]
    return " ".join(blanked(grid, rng.randint(6, 16 if n == 1 else 14), rng) for grid in grids), " ".join(grids)


def draw_latin(rng: random.Random) -> tuple[str, str]:
    """A puzzle of which 0 to 18 digits stay, and its square."""
    square = latin_square(rng)
    return blanked(square, rng.randint(18, 36), rng), square


def blanked(grid: str, free: int, rng: random.Random) -> str:
    """A grid with so many of its cells made free."""
    cells = list(grid)
    for cell in rng.sample(range(len(cells)), free):
        cells[cell] = FREE
    return "".join(cells)


def latin_square(rng: random.Random) -> str:
    """A random Latin square: one of many that were filled at random, its rows, columns and digits shuffled."""
    rows = rng.choice(_squares())
    order, columns, digits = (rng.sample(range(ORDER), ORDER) for _ in range(3))
    return "".join(str(digits[rows[r][c]] + 1) for r in order for c in columns)


@cache
def _squares(n: int = 200) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """So many squares; with shuffling they cover nearly all of the 812,851,200."""
    rng, rows = random.Random(6), list(permutations(range(ORDER)))
    squares: list[tuple[tuple[int, ...], ...]] = []
    while len(squares) < n:
        square: list[tuple[int, ...]] = []
        while len(square) < ORDER:
            fitting = [row for row in rows if all(a != b for old in square for a, b in zip(row, old, strict=True))]
            if not fitting:
                break
            square.append(rng.choice(fitting))
        if len(square) == ORDER:
            squares.append(tuple(square))
    return tuple(squares)
