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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOUND = 5.0  # seconds from the signal to the end of the process, when the machine is not busy with other things
LINUX = sys.platform == "linux"
MISHAPS = ("Traceback", "Exception ignored", "Error in", "KeyboardInterrupt", "Aborted", "terminate called", "leaked")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what a command leaves running becomes our child


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
    command: Sequence[str], place: Path, *, moment: float | None = None, numbers: Sequence[int] = (), gap: float = 0.0,
    on_terminal: bool = False, environment: dict[str, str] | None = None,
) -> End:  # fmt: skip
    """Runs a command in a folder; after `moment` seconds the signals are sent to it, `gap` seconds apart."""
    if LINUX:
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    (place / "tmp").mkdir(exist_ok=True)
    paths = [place.with_name(f"{place.name}.{name}") for name in ("out", "err")]
    master, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    modes = termios.tcgetattr(inner)
    before = _children()
    with paths[0].open("wb") as out, paths[1].open("wb") as err:
        began = time.monotonic()
        streams = (inner, inner, inner) if on_terminal else (subprocess.DEVNULL, out, err)
        process = _start(command, place, streams, environment or {}, _adopt if on_terminal else _heed)
        shown = _Screen(master)
        was_heeded = None
        sent = None
        if moment is not None and not shown.wait(process, began + moment):
            was_heeded = _heeds(process.pid)
            sent = time.monotonic()
            for number in numbers:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
                shown.wait(process, time.monotonic() + gap)
        assert shown.wait(process, time.monotonic() + 600), f"{command} hangs"
    ended = time.monotonic()
    kept = termios.tcgetattr(inner) == modes
    shown.read()
    for descriptor in (master, inner):
        os.close(descriptor)
    out_text, err_text = (path.read_bytes().decode("utf-8", "replace") for path in paths)
    return End(
        process.returncode, out_text + shown.content.decode("utf-8", "replace"), err_text, ended - began,
        ended - sent if sent else 0.0, was_heeded, _left_running(before), kept,
    )  # fmt: skip


def _start(
    command: Sequence[str], place: Path, streams: tuple[Any, Any, Any], environment: dict[str, str],
    first: Callable[[], None],
) -> subprocess.Popen:  # fmt: skip
    """A process there; `first` is called in it."""
    own = {"TMPDIR": str(place / "tmp"), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    own["OMP_NUM_THREADS"] = "1"  # torch's threads would wait for each other
    stdin, stdout, stderr = streams
    return subprocess.Popen(
        command, cwd=place, stdin=stdin, stdout=stdout, stderr=stderr, env={**os.environ, **own, **environment},
        preexec_fn=first,
    )  # fmt: skip


class _Screen:
    """Takes what is written on a terminal while a process runs."""

    def __init__(self, master: int):
        self.master, self.content = master, b""

    def read(self) -> None:
        while select.select([self.master], [], [], 0)[0]:
            self.content += os.read(self.master, 65536)

    def wait(self, process: subprocess.Popen, until: float) -> bool:
        """Whether the process ended by then."""
        while process.poll() is None:
            left = until - time.monotonic()
            if left <= 0:
                return False
            if select.select([self.master], [], [], min(left, 0.005))[0]:
                self.content += os.read(self.master, 65536)
        return True


def _heed() -> None:
    """In the child: signals as a shell gives them, whatever the tests' runner ignores; and a group of its own."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _adopt() -> None:
    """The same, with the terminal as its own."""
    _heed()
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
