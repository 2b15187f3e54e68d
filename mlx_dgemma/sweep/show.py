"""The table of a sweep on stdout: Markdown with every column, or on a terminal what fits it."""

import sys
from typing import TYPE_CHECKING

from mlx_dgemma.sweep.grid import Grid
from mlx_dgemma.sweep.summary import Line, markdown, table

if TYPE_CHECKING:
    from rich.table import Table


SPARE = ("tokens per forward", "p (McNemar)")  # columns that a narrow terminal can do without


def show(lines: list[Line], grid: Grid, title: str) -> None:
    """Prints it; on a terminal below a title, which holds the settings that all points share."""
    if not sys.stdout.isatty():
        print(markdown(*table(lines, list(grid.axes))))
        return
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    console.print(title, soft_wrap=True)
    console.print(drawn(*table(lines, grid.varying()), console.width), soft_wrap=True)


def show_table(cells: tuple[list[str], list[list[str]]], title: str) -> None:
    """Prints a second table below its title, in the same way."""
    if not sys.stdout.isatty():
        print(f"\n{title}:\n\n{markdown(*cells)}")
        return
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    console.print(f"\n{title}", soft_wrap=True)
    console.print(drawn(*cells, console.width), soft_wrap=True)


def drawn(header: list[str], cells: list[list[str]], width: int) -> "Table":
    """For a terminal; where it is too narrow, headers and names of tasks break, then columns go; figures stay whole."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    if _width(header, cells) > width:
        for name in SPARE:
            header, cells = _without(name, header, cells) if _broken_width(header, cells) > width else (header, cells)
        header, cells = _broken(header, cells)
    columns = [Column(name, min_width=least) for name, least in zip(header, _needed([header, *cells]), strict=True)]
    made = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in cells:
        made.add_row(*row)
    return made


def _broken(header: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """With line breaks in headers and names of tasks."""
    task = header.index("task")
    cells = [[c.replace(" with ", "\nwith ") if i == task else c for i, c in enumerate(row)] for row in cells]
    return [name.replace("_", "_\n").replace(" ", "\n").replace("\n%", " %") for name in header], cells


def _without(name: str, header: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns but for one."""
    kept = [i for i, own in enumerate(header) if own != name]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in cells]


def _broken_width(header: list[str], cells: list[list[str]]) -> int:
    return _width(*_broken(header, cells))


def _width(header: list[str], cells: list[list[str]]) -> int:
    return sum(_needed([header, *cells])) + 2 * len(header)


def _needed(rows: list[list[str]]) -> list[int]:
    """The width of each column."""
    return [max(len(part) for cell in column for part in cell.split("\n")) for column in zip(*rows, strict=True)]
