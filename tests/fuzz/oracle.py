"""What may happen: a right answer or one line. For the Python interface and for command lines in this process."""

import fcntl
import hashlib
import io
import os
import pty
import re
import struct
import sys
import tempfile
import termios
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_dgemma.errors import DGemmaError
from tests.fuzz.kind import Fault

LONGEST = 2000  # characters of a line that a reader would still read
TEMPORARY = (".part", ".new", ".partial", ".replaced", ".lock", ".tmp")


def demand(is_so: bool, what: str) -> None:
    """Raises Fault unless it is so."""
    if not is_so:
        raise Fault(what)


def check_line(text: str) -> None:
    """A complaint is one line of readable length."""
    demand(len(text.splitlines()) == 1, f"not one line: {text[:500]!r}")
    demand(len(text) <= LONGEST, f"a line of {len(text):,} characters: {text[:200]!r}")
    demand("Traceback" not in text, text)


class Refusals:
    """Counts what was refused."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """What is done in here may be refused in one line."""
        try:
            yield
        except DGemmaError as error:
            self.count += 1
            check_line(str(error))

    @property
    def none(self) -> bool:
        return not self.count


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: bytes
    err: str


def command(
    main: Callable[[list[str]], int], arguments: Sequence[object], stdin: bytes = b"", *, terminal: bool = False
) -> Ended:
    """Runs a command's `main` in this process, with its files 1 and 2 caught: libraries in C write there.

    With `terminal` stderr is a terminal of 24 rows, and what it is told to do (colours, moves) is left out of `err`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        shown = Screen() if terminal else None
        code = _run(main, arguments, stdin, (out.fileno(), shown.inner if shown else err.fileno()))
        out.seek(0)
        err.seek(0)
        told = shown.content() if shown else err.read()
        return Ended(code, out.read(), told.decode("utf-8", "replace"))


class Screen:
    """A terminal that somebody reads."""

    def __init__(self) -> None:
        self._master, self.inner = pty.openpty()
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the other side hung up
            while part := os.read(self._master, 65536):
                self._parts.append(part)

    def content(self) -> bytes:
        """What was written, without what moves the cursor and chooses colours."""
        os.close(self.inner)
        self._reader.join(5)
        os.close(self._master)
        told = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", b"".join(self._parts))
        return told.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _run(main: Callable[[list[str]], int], arguments: Sequence[object], stdin: bytes, files: tuple[int, int]) -> int:
    """Exit code of a command whose files 1 and 2 are these."""
    streams, kept = (sys.stdin, sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    for stream in streams[1:]:
        stream.flush()
    try:
        for number, descriptor in enumerate(files, 1):
            os.dup2(descriptor, number)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return code
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def check_ended(ended: Ended) -> bool:
    """Whether a command did what it was asked; if not, the last line of stderr says why and nothing else does."""
    lines = ended.err.split("\n")
    for line in lines:
        wrong = [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or "\u202a" <= c <= "\u202e"]
        demand(not wrong, f"control characters on stderr: {line[:500]!r}")
        demand(len(line) <= LONGEST, f"a line of {len(line):,} characters: {line[:200]!r}")
    demand("Traceback (most recent call last)" not in ended.err, ended.err)
    demand(ended.code in (0, 1, 2), f"exit code {ended.code!r}: {ended.err[-500:]}")
    complaints = [line for line in lines if line.startswith("error: ")]
    if ended.code == 0:
        demand(not complaints, f"a complaint and exit code 0: {ended.err[-500:]}")
        return True
    demand(len(complaints) == 1 and lines[-2:] == [complaints[0], ""], f"not one complaint: {ended.err[-800:]!r}")
    check_line(complaints[0])
    return False


def state(folder: Path) -> dict[str, str]:
    """What is in a folder: kind and content of each thing, by path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def check_kept(before: dict[str, str], after: dict[str, str], may_change: Sequence[str] = ()) -> None:
    """Nothing that was there has changed, and no temporary file has come; names of outputs are `may_change`."""
    for name, was in before.items():
        demand(name in may_change or after.get(name) == was, f"{name} was changed: {was} is now {after.get(name)}")
    left = [name for name in after if name not in before and name.endswith(TEMPORARY)]
    demand(not left, f"left behind: {left}")
