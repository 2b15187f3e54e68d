"""The CSV of a sweep and its description, altered, then gone on with: it ends as if nothing had been, or is left."""

import csv
import json
import random
from functools import cache
from pathlib import Path

from mlx_dgemma.sweep.__main__ import main
from tests.fuzz import files, mutations, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import check_ended, check_kept, command, demand, state

OPTIONS = ("--set", "max_denoising_steps=1,2", "--tasks", "roman", "--n", "2", "--max-tokens", "16")
CSV, RUN = "o.csv", "o.csv.run.json"
ATOMS = (
    "", "-1", "0", "1e999", "nan", "inf", "9" * 400, "9" * 5000, "x", '"', "\x00", "é", "-0", "True", "٣", "\r",
    "=1",
)  # fmt: skip


@cache
def finished() -> tuple[bytes, bytes]:
    """What an undisturbed run makes: CSV and description."""
    folder = small.original().parent
    ended = command(main, ["--model", small.original(), *OPTIONS, "--output", folder / CSV])
    demand(check_ended(ended), ended.err)
    return (folder / CSV).read_bytes(), (folder / RUN).read_bytes()


def make(random: random.Random) -> tuple[int, ...]:
    return mutations.seeds(random, 2)


def run(made: tuple[int, ...], folder: Path) -> bool:
    table, about = finished()
    put_about = None
    for seed in made:
        chance = random.Random(seed)
        way = chance.choice(["about", "bytes", "cut", "cell", "cell", "cell", "rows", "file"])
        if way == "about":
            about = mutations.edited(json.loads(finished()[1]), (seed,))
        elif way == "bytes":
            table = mutations.spoiled(table, chance)
        elif way == "cut":
            table = table[: chance.randrange(len(table) + 1)]
        elif way == "file":
            put_about = chance.choice([CSV, RUN]), files.odd(chance)
        else:
            table = altered(table, way, chance)
    (folder / CSV).write_bytes(table)
    (folder / RUN).write_bytes(about)
    if put_about is not None:
        files.put(folder / put_about[0], put_about[1])
    before = state(folder)
    ended = command(main, ["--model", small.original(), *OPTIONS, "--output", folder / CSV, "--resume"])
    done, after = check_ended(ended), state(folder)
    check_kept(before, after, (CSV, RUN) if done else ())
    if done:
        check_rows(folder / CSV)
    return done


def altered(table: bytes, way: str, chance: random.Random) -> bytes:
    """Rows in another order, twice or missing; or one cell with another text."""
    lines = table.split(b"\n")
    at = chance.randrange(len(lines))
    if way == "rows":
        other = chance.randrange(len(lines))
        lines = chance.choice([
            lines[:at] + lines[at + 1 :], [*lines[:at], lines[other], *lines[at:]], [*lines, *lines], lines[::-1],
            [*lines[:at], b"", *lines[at:]], [*lines[:at], lines[at][: len(lines[at]) // 2]],
        ])  # fmt: skip
        return b"\n".join(lines)
    cells = lines[at].split(b",")
    cells[chance.randrange(len(cells))] = chance.choice(ATOMS).encode()
    return b"\n".join([*lines[:at], b",".join(cells), *lines[at + 1 :]])


def check_rows(path: Path) -> None:
    """All rows, in order, with the columns that do not come from the clock or from an edit that nobody can see."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        found = [_known(row) for row in csv.reader(file)]
    wanted = [_known(row) for row in csv.reader(finished()[0].decode().splitlines())]
    demand(found == wanted, f"the rows are {found}")


def _known(row: list[str]) -> list[int | str]:
    """Setting, task, index and prompt: 0 may be spelled -0."""
    return [int(cell) if cell.strip("-").isdigit() else cell for cell in row[:4]]


KIND = Kind("journals", make, run, count=40)
