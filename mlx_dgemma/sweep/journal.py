"""The CSV of a sweep, a row per generation, and beside it the description of its run (`NAME.csv.run.json`).

Rows are written as they happen and in the order of the plan, so that a killed run loses the running generation and can
be resumed from what is there.
"""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import astuple, fields
from io import StringIO
from pathlib import Path
from typing import Any, TextIO, TypeVar

from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import read_file
from mlx_dgemma.sweep.grid import FIELDS, Grid
from mlx_dgemma.sweep.trials import Outcome, Row, Trial

Number = TypeVar("Number", int, float)
_LARGEST = 2**53  # of a count or of seconds, which a mean can still be made of
_TAIL = 1 << 20


def description_file(path: Path) -> Path:
    return path.with_name(path.name + ".run.json")


def columns(grid: Grid) -> list[str]:
    return [*grid.axes, *(f.name for f in fields(Outcome))]


def begin(path: Path, grid: Grid, description: dict[str, Any]) -> TextIO:
    """Starts a CSV afresh; the file is open for `append`."""
    path.unlink(missing_ok=True)  # first: an old CSV must never stand beside a new description
    new = description_file(path).with_suffix(".new")
    new.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, description_file(path))
    file = path.open("w", encoding="utf-8", newline="")
    file.write(",".join(columns(grid)) + "\n")
    file.flush()
    return file


def go_on(path: Path, nbytes: int) -> TextIO:
    """Opens a CSV for `append` after its first `nbytes` bytes; what follows them is dropped."""
    os.truncate(path, nbytes)
    return path.open("a", encoding="utf-8", newline="")


def append(file: TextIO, row: Row) -> None:
    """Writes a row and hands it to the operating system."""
    values = [int(value) if isinstance(value, bool) else value for value in astuple(row.outcome)]
    # texts are quoted always: some csv modules leave a lone carriage return bare, and cannot read it back
    csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow([*row.settings.values(), *values])
    file.flush()


def read_back(path: Path, grid: Grid, plan: list[Trial], description: dict[str, Any]) -> tuple[list[Row], int]:
    """The rows of an interrupted run and the bytes they take; none if it had not begun to write.

    Raises:
        DGemmaError: a CSV of another run (with what differs), or a row that this run did not write.
    """
    if not path.exists():
        return [], 0
    check_description(path, description)
    content = _content(path)
    nbytes = whole_records(content)
    csv.field_size_limit(sys.maxsize)  # an answer may be longer than the module's 128 kB
    reader = csv.reader(StringIO(content[:nbytes].decode("utf-8", "replace"), newline=""), strict=True)
    rows = []
    try:
        if next(reader, columns(grid)) != columns(grid):
            raise ValueError("these are other columns")
        for record in reader:
            rows.append(_row(record, grid))
            if len(rows) > len(plan) or not rows[-1].answers(plan[len(rows) - 1]):
                raise ValueError("another trial is due here")
    except (ValueError, LookupError, csv.Error) as error:
        raise DGemmaError(
            f"{path}:{reader.line_num}: not a row that this run wrote ({first_line(error)}); --force starts over"
        ) from None
    return rows, nbytes


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise DGemmaError(f"{path} cannot be read: {error.strerror}; give another --output") from None


def whole_records(content: bytes) -> int:
    """How many bytes of a CSV are complete records: a line end outside quotes ends one, the rest was cut off."""
    whole = position = quotes = 0
    for line in content.split(b"\n")[:-1]:
        position += len(line) + 1
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            whole = position
    return whole


def _count(text: str) -> int:
    return _bounded(int(text))


def _seconds(text: str) -> float:
    return _bounded(float(text))


def _bounded(number: Number) -> Number:
    if not 0 <= number <= _LARGEST:
        raise ValueError("a number that nothing counts to")
    return number


_READ: dict[object, Callable[[str], Any]] = {
    str: str,
    int: _count,
    float: _seconds,
    bool: {"0": False, "1": True}.__getitem__,
}


def _row(record: list[str], grid: Grid) -> Row:
    settings, own = record[: len(grid.axes)], record[len(grid.axes) :]
    outcome = Outcome(*(_READ[f.type](text) for f, text in zip(fields(Outcome), own, strict=True)))
    if not (outcome.steps and outcome.canvases):
        raise ValueError("a text of no steps")
    return Row({name: FIELDS[name](text) for name, text in zip(grid.axes, settings, strict=True)}, outcome)


def check_description(path: Path, description: dict[str, Any]) -> None:
    """Raises DGemmaError, saying what differs, unless the CSV's run has the same `identity`."""
    beside, here = description_file(path), description["identity"]
    try:
        there = json.loads(read_file(beside).decode("utf-8"))["identity"]
        differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise DGemmaError(
            f"{beside} is missing or unreadable, so {path} cannot be resumed; --force starts over"
        ) from None
    if differing:
        both = [(name, _told(there.get(name)), _told(here.get(name))) for name in differing]
        told = ", ".join(f"{name} is {then} there and {now} here" for name, then, now in both)
        raise DGemmaError(f"{path} belongs to another run: {told}; give another --output, or --force to start over")


def _told(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def fingerprint(folder: Path) -> str:
    """Tells checkpoints apart: SHA-256 over their JSON files and the size and last MiB of each weight file."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            stream.seek(0 if file.suffix == ".json" else max(0, size - _TAIL))
            digest.update(stream.read())
    return digest.hexdigest()[:16]
