"""SIGINT and SIGTERM at random moments of every command: its exit code, one line, and nothing left behind.

DGEMMA_SIGNALS is how many times per signal and command. A signal that comes before the command has its handlers is
Python's; the process shows that in /proc (`was_heeded`), and `test_start` bounds what comes before.
"""

import itertools
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_dgemma.errors import DGemmaError
from tests.signals.commands import COMMANDS, OLD, Command, cursor_is_shown, furnish, is_whole_output
from tests.signals.run import BOUND, MISHAPS, End, run

pytestmark = pytest.mark.slow
TIMES = int(os.environ.get("DGEMMA_SIGNALS", "0"))  # 0: a command's own share
SEED = 0
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@dataclass
class Undisturbed:
    """A run that nothing stopped: what it wrote, and the least seconds that such a run took."""

    out: str
    files: dict[str, bytes]
    seconds: float


class Places:
    """Folders for the runs, and what undisturbed ones wrote."""

    def __init__(self, parent: Path):
        self.parent, self.numbers, self.known = parent, itertools.count(), {}
        furnish(parent)

    def make(self) -> Path:
        place = self.parent / str(next(self.numbers))
        place.mkdir()
        return place

    def undisturbed(self, name: str) -> Undisturbed:
        if name not in self.known:
            command, place = COMMANDS[name], self.make()
            end = run(command.line, place, on_terminal=command.on_terminal)
            assert end.code == 0 and not end.orphans, end
            files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
            self.known[name] = Undisturbed(end.out, files, end.seconds)
        return self.known[name]

    def stopped(self, name: str, number: int, dice: random.Random, old: Sequence[str]) -> tuple[Path, float, End]:
        """A run that got the signal, while files stood where it writes; one that ended before it is made again."""
        command, undisturbed = COMMANDS[name], self.undisturbed(name)
        while True:
            place, moment = self.make(), dice.uniform(0, undisturbed.seconds)
            for file in old:
                (place / file).write_bytes(OLD)
            end = run(command.line, place, moment=moment, numbers=[number], on_terminal=command.on_terminal)
            if end.after:
                return place, moment, end
            undisturbed.seconds = min(undisturbed.seconds, end.seconds)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(tmp_path_factory.mktemp("signals"))


def check_end(command: Command, end: End, number: int) -> str:
    """How it ended, in a word; AssertionError if not as it must."""
    said = end.out + end.err if command.on_terminal else end.err
    assert end.orphans == [] and end.after <= BOUND and end.modes_kept
    if end.was_heeded is False and end.code in (-number, 1):
        return "Python's"
    assert not [mishap for mishap in MISHAPS if mishap in said]
    assert cursor_is_shown(end.out)
    if end.code == 0:
        return "finished"
    assert end.code == CODES[number]
    assert said.count("interrupted") <= 1
    return "interrupted"


def check_files(command: Command, place: Path, undisturbed: dict[str, bytes], is_replacing: bool) -> None:
    """Whole or as before; and no others."""
    assert {path.name for path in place.iterdir()} <= {"tmp", *command.files}
    assert list((place / "tmp").iterdir()) == []
    for name, is_whole in command.files.items():
        path = place / name
        if path.is_file() and not (is_replacing and path.read_bytes() == OLD):
            assert is_whole(path, undisturbed[name]), name
        assert path.exists() or not is_replacing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment(places, name, number):
    command, dice, outcomes = COMMANDS[name], random.Random(f"{SEED} {name} {number}"), Counter()
    undisturbed, faults = places.undisturbed(name), []
    for _ in range(TIMES or command.share):
        is_replacing = bool(command.files) and command.follow_up is None and dice.random() < 0.5
        place, moment, end = places.stopped(name, number, dice, [*command.files] if is_replacing else [])
        try:
            outcomes[check_end(command, end, number)] += 1
            check_files(command, place, undisturbed.files, is_replacing)
            assert end.code != 0 or is_whole_output(command, end, undisturbed.out)
            if command.follow_up is not None:
                command.follow_up(command, place, undisturbed.files)
        except (AssertionError, DGemmaError, OSError, ValueError) as error:
            faults.append(f"after {moment:.3f} s: {error}\n{end}")
        shutil.rmtree(place)
    print(f"\n{name}, {signal.Signals(number).name}: {dict(outcomes)}, {len(faults)} faults")
    assert not faults, "\n\n".join(faults)
