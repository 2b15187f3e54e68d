"""The command: in a pipe, and on a terminal of its own."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pyte
import pytest

from mlx_dgemma.chat.show import _complete
from mlx_dgemma.trace import load_trace
from tests.screen import ROOT

COMMAND = [sys.executable, "-m", "mlx_dgemma.chat"]
LONG = ("--stability-threshold", "10")  # steps enough to stop one in the middle, on any machine


def piped(text: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments], input=text, capture_output=True, text=True, timeout=120, cwd=ROOT, encoding="utf-8"
    )


@pytest.mark.slow
def test_in_a_pipe_answers_are_all_that_is_on_stdout(tmp_path):
    lines = [
        "roman 1994",
        "/nope",
        "spell 42",
        "/undo",
        "/retry",
        f"/trace {tmp_path / 'r.npz'}",
        "upper é",
        "upper ab",
    ]
    done = piped("\n".join([*lines, f"/save {tmp_path / 'c.json'}", "/exit", "roman 3"]))
    assert (done.returncode, done.stdout) == (0, "MCMXCIV\nforty-two\nMCMXCIV\nAB\n")
    assert "error: no command /nope" in done.stderr and "does not know: 'é'" in done.stderr
    assert "tokens/s" in done.stderr and "cached" in done.stderr and "\x1b" not in done.stderr
    assert len(load_trace(tmp_path / "r.npz").step) >= 1
    kept = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert [m["content"] for m in kept] == ["roman 1994", "MCMXCIV", "upper ab", "AB"]
    again = piped("spell 42\n", "--load", str(tmp_path / "c.json"))
    assert again.stdout == "forty-two\n" and again.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["--seed", "-1"], "seed must be", 1),
        (["--t-min", "-1"], "--t-min", 2),
        (["--load", "/nonesuch"], "cannot be read", 1),
        (["--tools", "/nonesuch"], "cannot be read as tools", 1),
        (["--model", "/nonesuch"], "no folder", 1),
    ],
)
def test_what_is_wrong_is_one_line(arguments, told, code):
    done = piped("", *arguments)
    assert done.returncode == code and told in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.slow
def test_a_template_that_raises_or_is_missing_costs_nothing(tmp_path):
    import shutil

    from mlx_dgemma.checkpoint.loading import EMBEDDED

    shutil.copytree(EMBEDDED, tmp_path / "c")
    (tmp_path / "c" / "chat_template.jinja").write_text("{{ raise_exception('not so') }}")
    done = piped("roman 3\n/save " + str(tmp_path / "s.json"), "--model", str(tmp_path / "c"))
    assert done.returncode == 0 and "error: the chat template refuses these messages: not so" in done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["messages"] == []
    (tmp_path / "c" / "chat_template.jinja").unlink()
    done = piped("roman 3\n", "--model", str(tmp_path / "c"))
    assert done.returncode == 0 and "has no chat template" in done.stderr


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, columns: int, home, *arguments: str, **environment: str):
        self.screen = pyte.Screen(columns, 24)
        self.stream = pyte.ByteStream(self.screen)
        self.sent = b""
        self.master, inner = pty.openpty()
        os.set_blocking(self.master, False)
        import fcntl
        import struct
        import termios

        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        known = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        known |= {"TERM": "xterm-256color", "XDG_STATE_HOME": str(home), **environment}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=inner, stdout=inner, stderr=inner, cwd=ROOT, env=known,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inner)

    @property
    def rows(self) -> list[str]:
        return [row.rstrip() for row in self.screen.display]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> str:
        """Reads until the screen shows this; what it shows."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(pattern, shown := "\n".join(self.rows)):
                return shown
            self.read(0.1)
        raise AssertionError(f"{pattern} is not on the screen:\n" + "\n".join(self.rows))

    def read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            with suppress(OSError):
                data = os.read(self.master, 65536)
                self.sent += data
                self.stream.feed(data)
                for _ in range(data.count(b"\x1b[6n")):  # prompt_toolkit asks where the cursor is
                    self.type(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")

    def end(self) -> int:
        while self.process.poll() is None:
            self.read(0.1)
        self.read(0)
        os.close(self.master)
        return self.process.returncode


@pytest.mark.slow
def test_a_turn_on_a_terminal(tmp_path):
    terminal = Terminal(80, tmp_path)
    terminal.until(r"\n>")
    terminal.type("sudoku 1...............\r")
    terminal.until("canvas 1 · step")  # while it denoises
    shown = terminal.until(r"\d{16}\n16 tokens · .* tokens/s · steps \d+ · work 0\.\d{3} · 0 of \d+ cached · stop\n>")
    assert "canvas 1 · step" not in shown
    terminal.type("/he\t")
    terminal.until("> /help")
    terminal.type("\r")
    terminal.until("/stats +figures of the last answer")
    terminal.type("\x1b[A\x1b[A\r")  # the line before the last again
    terminal.until(r"cached · stop\n> *\n*$")
    terminal.type("\x04")
    assert terminal.end() == 0 and b"\x1b[?1049h" not in terminal.sent
    history = tmp_path / "mlx-dgemma" / "chat-history"
    assert "sudoku" in history.read_text() and history.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_ctrl_c_ends_the_answer_and_not_the_conversation(tmp_path):
    terminal = Terminal(80, tmp_path, *LONG)
    terminal.until(r"\n>")
    terminal.type("count 18 to 50\r")
    terminal.until("canvas 2 · step")
    terminal.type("\x03")
    shown = terminal.until(r"interrupted\n>")
    assert "18 19 20 21" in shown  # what was committed
    terminal.type("roman 3\r")
    terminal.until(r"III\n3 tokens")
    terminal.type("\x03")  # on the line: what is typed is given up
    terminal.type("/exit\r")
    assert terminal.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_any_other_signal_ends_the_conversation(tmp_path, number):
    terminal = Terminal(80, tmp_path, *LONG)
    terminal.until(r"\n>")
    terminal.type("count 18 to 50\r")
    terminal.until("canvas 2 · step")
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    assert terminal.sent.count(b"interrupted") == 1 and b"Traceback" not in terminal.sent
    assert "18 19 20 21" in "\n".join(terminal.rows)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_forty_columns(tmp_path, environment):
    terminal = Terminal(40, tmp_path, **environment)
    terminal.until(r"\n>")
    terminal.type("count 18 to 50\r")
    shown = terminal.until(r"stop\n>")
    assert "18 19 20 21 22 23 24 25 26 27 28 29 30\n31 32" in shown
    assert "98 tokens" in shown and all(len(row) <= 40 for row in terminal.rows)
    terminal.type("\x04")
    assert terminal.end() == 0
    coloured = re.search(rb"\x1b\[(?:2|3[0-7]|38;[0-9;]+)m", terminal.sent[terminal.sent.index(b"98 tokens") - 20 :])
    assert (coloured is None) == bool(environment)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", 0),
        ("a", 0),
        ("a\n\n", 3),
        ("a\n\nb", 3),
        ("```\na\n\nb\n", 0),
        ("```\na\n\n```\n\nb", 12),
        ("a\n \nb\n\n", 7),
    ],
)
def test_blocks_of_markdown_that_nothing_can_change(text, whole):
    assert _complete(text) == whole
