"""The real command, stopped at moments that a seed chooses and before its file operations, and then resumed."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.convert.conftest import CODES, ROOT, contents

pytestmark = pytest.mark.slow
SEED = 0
TIMES = int(os.environ.get("DGEMMA_SIGNALS", "25"))  # each signal; see tests/signals
# Arguments: a signal, "before" or "after", a number of file operations or of seconds; then those of the command.
# "before 0" stops nothing and prints the names of the file operations in their order.
DRIVER = """
import os, signal, sys, threading
from convert import __main__, plan
number, when, count = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
plan.Plan.shards.__defaults__ = (300_000,)
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests' runner ignores it
SEAMS = {"write", "pwrite", "fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "truncate", "flock"}
names, run = [], __main__.run

def seam(frame, event, function):
    owner = getattr(function, "__self__", None)
    if event != "c_call" or function.__name__ not in SEAMS or owner in (sys.stdout, sys.stderr):
        return
    if function.__module__ in ("posix", "fcntl") or type(owner).__module__ == "_io":
        names.append(function.__name__)
        if len(names) == count:
            os.kill(os.getpid(), number)

def watched(*arguments):
    timer = threading.Timer(count, os.kill, (os.getpid(), number))
    if when == "after":
        timer.start()
    else:
        sys.setprofile(seam)
    try:
        return run(*arguments)
    finally:
        sys.setprofile(None)
        timer.cancel()
        if not count:
            print(*names)

__main__.run = watched
sys.exit(__main__.main(sys.argv[4:]))
"""


class Place:
    """A folder to convert into; `old` stands there at first and is to be replaced."""

    def __init__(self, source: Path, parent: Path, old: Path | None):
        parent.mkdir()
        self.target, self.old = parent / "t", contents(old) if old else None
        self.arguments = ["--hf-path", source, "--mlx-path", self.target, "--resume", *(["--force"] if old else [])]
        if old:
            shutil.copytree(old, self.target)

    def run(self, number: int, when: str, count: float) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", DRIVER, str(int(number)), when, str(count), *self.arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    def check(self, new: dict[str, bytes]) -> None:
        """The target is the new one or the old one; if it is neither, it is not there, and the new one is complete."""
        if self.target.exists():
            assert contents(self.target) in (self.old, new)
        elif self.old:
            assert contents(self.target.with_name("t.partial")) == new

    def check_resume(self, new: dict[str, bytes]) -> None:
        end = self.run(signal.SIGKILL, "after", 1000)
        assert end.returncode == 0, end.stderr
        assert contents(self.target.parent) == {f"t/{name}": content for name, content in new.items()}


@pytest.fixture(scope="module")
def places(folder, tmp_path_factory):
    """Makes folders to convert into; has what an undisturbed run makes, its file operations and an old target."""

    class Places:
        parent, numbers = tmp_path_factory.mktemp("kills"), itertools.count()

        def make(self, replacing: bool) -> Place:
            return Place(folder, self.parent / str(next(self.numbers)), self.old if replacing else None)

    places = Places()
    Places.old, first = None, places.make(False)
    Places.seams = {False: first.run(0, "before", 0).stdout.split()}
    Places.new, Places.old = contents(first.target), first.target.rename(places.parent / "old")
    (places.old / "config.json").write_text("{}")
    Places.seams[True] = places.make(True).run(0, "before", 0).stdout.split()
    return places


def moments(seams: list[str], count: int, seed: int) -> list[tuple[str, float]]:
    """When to stop a run: half of them before file operations, all renames among them; half at any time."""
    dice, numbered = random.Random(seed), list(enumerate(seams, 1))
    chosen = {i + after for i, name in numbered if name == "rename" for after in (0, 1)}
    for kind in ([i for i, name in numbered if name != "pwrite"], range(1, len(seams) + 1)):
        chosen |= {*dice.sample([i for i in kind if i not in chosen], (count // 2 - len(chosen) + 1) // 2)}
    times = [("after", dice.uniform(0, 0.5)) for _ in range(count - len(chosen))]
    return [*(("before", i) for i in sorted(chosen)), *times]


def in_parallel(work, items) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, items))


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_anywhere_the_result_is_the_same(places, replacing):
    def work(moment):
        place = places.make(replacing)
        killed = place.run(signal.SIGKILL, *moment)
        assert killed.returncode == -signal.SIGKILL or (moment[0] == "after" and killed.returncode == 0)
        place.check(places.new)
        place.check_resume(places.new)

    in_parallel(work, moments(places.seams[replacing], 25, SEED))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_anywhere_it_is_one_line(places, number):
    def work(moment):
        place = places.make(replacing=True)
        end = place.run(number, *moment)
        place.check(places.new)
        if end.returncode == 0:
            assert moment[0] == "after" and contents(place.target) == places.new
            return
        progress = ("converted ", f"{place.target}: ")
        said = [line for line in end.stderr.splitlines() if not line.startswith(progress)]
        assert end.returncode == CODES[number], (moment, end.stderr)
        assert len(said) == 1 and "--resume goes on" in said[0], (moment, end.stderr)

    in_parallel(work, moments(places.seams[True], TIMES, SEED + number))


def test_a_loop_around_resume_ends(places):
    """until python -m convert … --resume; do :; done, as it is typed, with a kill in every run but the last."""
    place, dice = places.make(replacing=False), random.Random(SEED)
    command = [sys.executable, "-m", "convert", *place.arguments]
    for _ in range(8):
        with suppress(subprocess.TimeoutExpired):
            assert (
                subprocess.run(command, cwd=ROOT, capture_output=True, timeout=dice.uniform(0.1, 0.4)).returncode == 0
            )
    for _ in range(2):
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert {file.parent for file in place.target.parent.rglob("*")} == {place.target.parent, place.target}
