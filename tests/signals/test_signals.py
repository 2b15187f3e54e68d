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
from tests.signals.run import MISHAPS, End, Stop, run

pytestmark = pytest.mark.slow
TIMES = int(os.environ.get("DGEMMA_SIGNALS", "0"))  # 0: a command's own share
SEED = 0
BOUND = 5.0  # seconds from the signal to the end; and what a run takes here, as an import or a pass is waited for
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

    def stopped(self, name: str, stop: Stop, dice: random.Random, old: Sequence[str]) -> tuple[Path, float, End]:
        """A run that was stopped, while files stood where it writes; one that ended before is made again."""
        command, undisturbed = COMMANDS[name], self.undisturbed(name)
        on_terminal = command.on_terminal or stop.hangs_up
        while True:
            place, moment = self.make(), dice.uniform(0, undisturbed.seconds)
            for file in old:
                (place / file).write_bytes(OLD)
            end = run(command.line, place, moment, stop, on_terminal=on_terminal)
            if end.after:
                return place, moment, end
            undisturbed.seconds = min(undisturbed.seconds, end.seconds)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(tmp_path_factory.mktemp("signals"))


def check_end(command: Command, end: End, stop: Stop, bound: float) -> str:
    """How it ended, in a word; AssertionError if not as it must."""
    numbers = stop.numbers or [signal.SIGHUP]
    said = end.out + end.err
    assert end.orphans == [] and end.after <= bound and end.modes_kept
    if end.was_heeded is False and -end.code in (*numbers, -1):
        return "Python's"
    assert not [mishap for mishap in MISHAPS if mishap in said]
    assert stop.hangs_up or cursor_is_shown(end.out)
    if end.code == 0:
        return "finished"
    assert end.code in [CODES[number] for number in numbers]
    assert said.count("interrupted") <= 1 + ("--json" in command.words)
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


def attempt(places: Places, name: str, stop: Stop, dice: random.Random) -> tuple[str, str]:
    """Stops a command once; how it ended, and what was wrong with that."""
    command, undisturbed = COMMANDS[name], places.undisturbed(name)
    is_replacing = bool(command.files) and command.follow_up is None and dice.random() < 0.5
    place, moment, end = places.stopped(name, stop, dice, [*command.files] if is_replacing else [])
    outcome, fault = "fault", ""
    try:
        outcome = check_end(command, end, stop, BOUND + undisturbed.seconds)
        check_files(command, place, undisturbed.files, is_replacing)
        assert end.code != 0 or is_whole_output(command, end, undisturbed.out)
        if command.follow_up is not None:
            command.follow_up(command, place, undisturbed.files)
    except (AssertionError, DGemmaError, OSError, ValueError) as error:
        fault = f"{name}, {stop} after {moment:.3f} s: {error}\n{end}"
    print(end="\n" * bool(fault) + fault, flush=True)  # at once: a long run may not get to its end
    shutil.rmtree(place)
    return outcome, fault


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment(places, name, number):
    dice = random.Random(f"{SEED} {name} {int(number)}")
    ends = [attempt(places, name, Stop([number]), dice) for _ in range(TIMES or COMMANDS[name].share)]
    print(f"\n{name}, {signal.Signals(number).name}: {dict(Counter(outcome for outcome, _ in ends))}")
    assert "".join(fault for _, fault in ends) == ""


@pytest.mark.parametrize("how", ["twice", "hang-up"])
@pytest.mark.parametrize("name", ["trace", "watch", "sweep"])
def test_two_quick_signals_and_a_terminal_that_goes_away(places, name, how):
    dice = random.Random(f"{SEED} {name} {how}")

    def stop() -> Stop:
        if how == "hang-up":
            return Stop(hangs_up=True)
        return Stop([signal.SIGINT, dice.choice([signal.SIGINT, signal.SIGTERM])], dice.choice([0, 0.01, 0.1]))

    ends = [attempt(places, name, stop(), dice) for _ in range(TIMES or 1)]
    print(f"\n{name}, {how}: {dict(Counter(outcome for outcome, _ in ends))}")
    assert "".join(fault for _, fault in ends) == ""


@pytest.mark.parametrize("name", ["generate", "json", "sweep", "report"])
def test_a_reader_that_goes_away_and_a_device_that_is_full(places, name):
    """As `| head -1` and `>/dev/full` do."""
    reader, writer = os.pipe()
    os.close(reader)
    gone = run(COMMANDS[name].line, places.make(), stdout=writer)
    os.close(writer)
    assert (gone.code, gone.err.count("error:"), gone.orphans) == (1, 0, [])
    with open("/dev/full", "wb") as device:
        full = run(COMMANDS[name].line, places.make(), stdout=device.fileno())
    assert (full.code, full.err.count("error:"), full.orphans) == (1, 1, []) and "No space left" in full.err
    assert not [mishap for mishap in MISHAPS if mishap in gone.err + full.err]
