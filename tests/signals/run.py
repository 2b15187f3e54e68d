"""A command in a process of its own, stopped at a moment by a signal; how it ended, and what it left behind."""

import ctypes
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LINUX = sys.platform == "linux"
MISHAPS = ("Traceback", "Exception ignored", "Error in", "KeyboardInterrupt", "Aborted", "terminate called", "leaked")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what a command leaves running becomes our child


@dataclass(frozen=True)
class Stop:
    """What stops a run: signals so many seconds apart, or the end of its terminal."""

    numbers: Sequence[int] = ()
    gap: float = 0.0
    hangs_up: bool = False


@dataclass
class End:
    """How a run ended.

    Attributes:
        code: exit code, negative for a signal that Python or the system did not let the command see.
        out, err: what was written; on a terminal `out` has both.
        seconds: from the start to the end of the process.
        after: from the signal to the end; 0 if it had ended before.
        was_heeded: whether the command had its handlers when it was sent; None where that cannot be seen.
        orphans: command lines that still ran when the command had ended for two seconds.
        modes_kept: whether the terminal has the modes it had.
    """

    code: int
    out: str
    err: str
    seconds: float
    after: float
    was_heeded: bool | None
    orphans: list[str]
    modes_kept: bool = True


def run(
    command: Sequence[str], place: Path, moment: float | None = None, stop: Stop | None = None, *,
    on_terminal: bool = False, stdout: int | None = None,
) -> End:  # fmt: skip
    """Runs a command in a folder, and stops it after `moment` seconds; `stdout` may be a descriptor to write to."""
    if LINUX:
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    (place / "tmp").mkdir(exist_ok=True)
    paths = [place.with_name(f"{place.name}.{name}") for name in ("out", "err")]
    before, terminal = _children(), _Terminal()
    with paths[0].open("wb") as out, paths[1].open("wb") as err:
        began, sent, was_heeded = time.monotonic(), None, None
        streams = (subprocess.DEVNULL, out if stdout is None else stdout, err)
        process = _start(command, place, [terminal.inner] * 3 if on_terminal else streams, on_terminal)
        if stop is not None and not terminal.wait(process, began + moment):
            was_heeded, sent = _heeds(process.pid), time.monotonic()
            _stop(process, terminal, stop)
        assert terminal.wait(process, time.monotonic() + 600), f"{command} hangs"
    ended = time.monotonic()
    kept, shown = terminal.close()
    out_text, err_text = (path.read_bytes().decode("utf-8", "replace") for path in paths)
    return End(
        process.returncode, out_text + shown, err_text, ended - began, ended - sent if sent else 0.0, was_heeded,
        _left_running(before), kept,
    )  # fmt: skip


def _stop(process: subprocess.Popen, terminal: "_Terminal", stop: Stop) -> None:
    if stop.hangs_up:
        terminal.hang_up()
    for number in stop.numbers:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        terminal.wait(process, time.monotonic() + stop.gap)


def _start(command: Sequence[str], place: Path, streams: Sequence[Any], on_terminal: bool) -> subprocess.Popen:
    own = {"TMPDIR": str(place / "tmp"), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    own["OMP_NUM_THREADS"] = "1"  # torch's threads would wait for each other
    return subprocess.Popen(
        command, cwd=place, stdin=streams[0], stdout=streams[1], stderr=streams[2], env={**os.environ, **own},
        preexec_fn=_adopt if on_terminal else heed,
    )  # fmt: skip


class _Terminal:
    """A terminal, and what is written on it."""

    def __init__(self) -> None:
        self.master, self.inner = pty.openpty()
        termios.tcsetwinsize(self.inner, (24, 80))
        self.modes, self.content = termios.tcgetattr(self.inner), b""

    def wait(self, process: subprocess.Popen, until: float) -> bool:
        """Whether the process ended by then."""
        while process.poll() is None:
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._read(min(left, 0.005))
        return True

    def hang_up(self) -> None:
        """As when its window is closed."""
        os.close(self.master)
        self.master = None

    def close(self) -> tuple[bool, str]:
        """Whether its modes are what they were, and what was written."""
        kept = self.master is None or termios.tcgetattr(self.inner) == self.modes
        while self._read(0):
            pass
        if self.master is not None:
            os.close(self.master)
        os.close(self.inner)
        return kept, self.content.decode("utf-8", "replace")

    def _read(self, seconds: float) -> bool:
        if self.master is None:
            time.sleep(seconds)
        elif select.select([self.master], [], [], seconds)[0]:
            self.content += os.read(self.master, 65536)
            return True
        return False


def heed() -> None:
    """In the child: signals as a shell gives them, whatever the tests' runner ignores; and a group of its own."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _adopt() -> None:
    """The same, with the terminal as its own."""
    heed()
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)


def _heeds(pid: int) -> bool | None:
    """Whether a process has a handler for SIGTERM, or ignores it at its end; None where there is no /proc."""
    if not LINUX:
        return None
    with suppress(OSError):
        fields = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return bool((int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)) >> signal.SIGTERM - 1 & 1)
    return None


def _children() -> set[int]:
    """Of this process, among them what its children left running."""
    tasks = Path("/proc/self/task").glob("*/children") if LINUX else []
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def _left_running(before: set[int], patience: float = 2.0) -> list[str]:
    until = time.monotonic() + patience
    while left := _children() - before:
        for pid in list(left):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    left.discard(pid)
        if time.monotonic() > until:
            return [_ended(pid) for pid in left]
        time.sleep(0.01)
    return []


def _ended(pid: int) -> str:
    """Ends an orphan; its command line."""
    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return line
