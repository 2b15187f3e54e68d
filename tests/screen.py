"""Terminals for tests: the command line on one whose screen can be looked at, and one on stderr of this process."""

import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from pathlib import Path

import pyte

ROOT = Path(__file__).parent.parent

# The command line, made to say when an event has been shown and to wait for leave to go on.
STEPPED = """
import os, sys
from mlx_dgemma import generate
from mlx_dgemma.text.engine import Engine
stream = Engine.stream
def stepped(engine, request):
    for event in stream(engine, request):
        yield event
        os.write(0, b".")
        if not os.read(0, 1):
            raise SystemExit("the test has gone")
Engine.stream = stepped
sys.exit(generate.main(sys.argv[1:]))
"""


# The same of a report that plays a trace: it says so where it would wait after a step.
PLAYED = """
import os, sys, time
def sleep(seconds):
    os.write(0, b".")
    if not os.read(0, 1):
        raise SystemExit("the test has gone")
time.sleep = sleep
from mlx_dgemma.report.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """The command line on a terminal of its own, event by event; `screen` is what the user sees."""

    program, option = STEPPED, "--watch"

    def __init__(self, columns: int, lines: int, *arguments: str, stdout=None, **environment: str):
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.master, inner = pty.openpty()
        self.leave, stdin = socket.socketpair()
        self.leave.settimeout(60)
        self.set_size(columns, lines)
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.program, self.option, *arguments],
            stdin=stdin, stdout=stdout or inner, stderr=inner, cwd=ROOT, preexec_fn=self.adopt,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        os.close(inner)
        stdin.close()
        self.next(b"")

    @staticmethod
    def adopt() -> None:
        """In the child: Ctrl-C typed on this terminal reaches it, even if the tests' runner ignores SIGINT."""
        os.setsid()
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """As terminals do that wrap rows anew; pyte would cut them off. A row that is full is taken to go on below."""
        rows = self.screen.display[: self.screen.cursor.y + 1]
        whole = "".join(row if row[-1] != " " else row.rstrip() + "\n" for row in rows).rstrip("\n").split("\n")
        self.set_size(columns, lines)
        self.screen.resize(lines, columns)
        self.screen.erase_in_display(2)
        self.screen.cursor_position()
        self.stream.feed("\r\n".join(whole).encode())

    def next(self, leave: bytes = b"\n") -> "Terminal":
        """Lets the command line go on to its next event, or to its end."""
        self.leave.send(leave)
        while self.leave not in (ready := select.select([self.leave, self.master], [], [], 60)[0]):
            assert ready, "the command line hangs"
            if not self.read():
                return self
        self.leave.recv(1)
        while select.select([self.master], [], [], 0.1)[0] and self.read():
            pass
        return self

    def finish(self) -> "Terminal":
        while self.process.poll() is None:
            try:
                self.next()
            except OSError:
                break
        while self.read():
            pass
        self.process.wait(timeout=60)
        return self

    def read(self) -> bool:
        """Feeds the screen; False when the other side hung up."""
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.stream.feed(data)
        return bool(data)

    def rows(self) -> list[str]:
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip().split("\n")

    def text(self) -> str:
        return "".join(self.screen.display).rstrip()


class Player(Terminal):
    """A report that plays a trace."""

    program, option = PLAYED, "--play"


@contextmanager
def terminal_on_stderr(monkeypatch):
    """In this process: stderr is a terminal of 100 × 30; the list has what was written there, in the end."""
    master, inner = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    shown = []
    with open(inner, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield shown
    with open(master, "rb", buffering=0) as terminal, suppress(OSError):  # the other side hung up
        while data := terminal.read(65536):
            shown.append(data)
