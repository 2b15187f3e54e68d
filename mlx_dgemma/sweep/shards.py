"""A sweep in parts, on any machines: each takes some of the questions, and a merge makes one run of them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import read_file
from mlx_dgemma.sweep import journal
from mlx_dgemma.sweep.grid import Grid
from mlx_dgemma.sweep.trials import Row, Trial

MOST = 10_000  # shards
FORM = "give it as 1/4, the first of four"


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a run, from 1 on: the questions of each task whose index is so, modulo `count`."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> "Shard":
        """From "2/4".

        Raises:
            DGemmaError: what is none.
        """
        match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
        if match is None or not int(match[1]) <= int(match[2]) <= MOST:
            raise DGemmaError(f"--shard {text!r} is none; {FORM}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def takes(self, index: int) -> bool:
        """Whether a question is in this part."""
        return index % self.count == self.number - 1


def part(plan: list[Trial], shard: Shard | None) -> list[Trial]:
    """The trials of a shard, in order; of all questions without one."""
    return plan if shard is None else [trial for trial in plan if shard.takes(trial.question.index)]


def described(description: dict[str, Any], shard: Shard | None) -> dict[str, Any]:
    """The description of a shard's run, of that of the whole."""
    if shard is None:
        return description
    return {**description, "identity": {**description["identity"], "shard": str(shard)}}


def merge(files: Sequence[Path], grid: Grid, plan: list[Trial], description: dict[str, Any]) -> list[Row]:
    """The rows of a whole run, in its order, out of those of its shards.

    Raises:
        DGemmaError: a file that is no finished shard of this run, one that is there twice, one that is missing.
    """
    rows: dict[tuple[str, str, int], Row] = {}
    found: dict[int, Path] = {}
    count = 0
    for path in files:
        shard = _shard_of(path)
        if count and shard.count != count:
            raise DGemmaError(f"{path} is shard {shard}, and {files[0]} is one of {count}; merge those of one run")
        if shard.number in found:
            raise DGemmaError(f"{path} and {found[shard.number]} are both shard {shard}; give each once")
        found[shard.number], count = path, shard.count
        due = part(plan, shard)
        own, _ = journal.read_back(path, grid, due, described(description, shard))
        if len(own) < len(due):
            raise DGemmaError(f"{path} has {len(own)} of {len(due)} generations; finish it with --resume, then merge")
        rows.update((_key(row.settings, row.outcome.task, row.outcome.index), row) for row in own)
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in found]
    if missing:
        raise DGemmaError(f"--merge: shard {', '.join(missing)} is missing; give all {count}")
    return [rows[_key(trial.settings, trial.question.task, trial.question.index)] for trial in plan]


def write(path: Path, grid: Grid, rows: Sequence[Row], description: dict[str, Any]) -> None:
    """Writes the CSV of a whole run, and its description."""
    with journal.begin(path, grid, description) as file:
        for row in rows:
            journal.append(file, row)


def _key(settings: dict[str, Any], task: str, index: int) -> tuple[str, str, int]:
    return repr(settings), task, index


def _shard_of(path: Path) -> Shard:
    beside = journal.description_file(path)
    try:
        told = json.loads(read_file(beside).decode("utf-8"))["identity"]["shard"]
        return Shard.of(told)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, DGemmaError):
        raise DGemmaError(f"{path} is no shard: {beside} is missing or names none; give what --shard wrote") from None
