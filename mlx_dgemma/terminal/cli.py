"""What the command lines share: a parser with one-line errors, exit codes, plain progress lines. No heavy imports."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NoReturn, TextIO

from mlx_dgemma import __version__
from mlx_dgemma.errors import DGemmaError, shortened
from mlx_dgemma.terminal import signals
from mlx_dgemma.terminal.plain import line

CODES = "Exit codes: 0, 1 (failed), 2 (bad usage), 130 (Ctrl-C), 143 (SIGTERM)."


class Parser(argparse.ArgumentParser):
    """Bad usage is one line on stderr and exit code 2; no option is taken for another that begins like it."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.epilog = f"{self.epilog}\n\n{CODES}" if self.epilog else CODES
        self.add_argument("--version", action="version", version=f"mlx-dgemma {__version__}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {line(shortened(message))} (see --help)\n")


class Elsewhere(argparse.Action):
    """An option of other programs that has no equal here: the error says what to use."""

    def __init__(self, option_strings: Sequence[str], dest: str, instead: str):
        super().__init__(option_strings, dest, nargs="?", help=argparse.SUPPRESS)
        self.instead = instead

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        parser.error(f"{option} is not an option here; {self.instead}")


def say(message: object) -> None:
    """A line on stderr, whatever its text holds."""
    print(line(shortened(str(message))), file=sys.stderr, flush=True)


def as_utf8(stream: TextIO) -> None:
    """Lets a stream take any text; one that a program has put in its place, a StringIO say, is left as it is."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8")


def exit_code(run: Callable[[], int], interrupted: str, *, ends_process: bool = False) -> int:
    """Runs a command and returns its exit code; where it failed or was interrupted, one line on stderr says so.

    Args:
        run: does the work, writes to stdout, returns the exit code.
        interrupted: what to say after a signal that `run` did not deal with itself.
        ends_process: whether the process ends when this returns.
    """
    with signals.heeded(ends_process=ends_process):
        code = _code(run, interrupted)
    if ends_process and signals.came():
        os._exit(code)  # Python would end by SIGINT if one passed an `exec` of a text, as dataclasses have
    return code


def _code(run: Callable[[], int], interrupted: str) -> int:
    try:
        signals.release()
        as_utf8(sys.stdout)
        code = run()
        sys.stdout.flush()
        signals.close()
        return code
    except DGemmaError as error:
        signals.hold()
        _end(f"error: {error}")
    except KeyboardInterrupt:
        signals.hold()
        _end(interrupted)
        return signals.exit_code()
    except BrokenPipeError:  # the reader of stdout went away, as `head` does
        signals.hold()
        _end()
    except OSError as error:
        signals.hold()
        _end(f"error: {error}")
    return signals.exit_code(otherwise=1)  # a hang-up is followed by errors where something is written


def _end(message: str | None = None) -> None:
    """The last words, if there is still somebody to hear them; both outputs, or Python would complain at its exit."""
    with suppress(OSError):
        if message is not None:
            say(message)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def require(*packages: str) -> None:
    """Checks that packages are there which only some people need.

    Raises:
        DGemmaError: what is missing, and how to get it.
    """
    missing = [name for name in packages if find_spec(name.replace("-", "_")) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise DGemmaError(f"{' and '.join(missing)} {verb} not installed; pip install {' '.join(missing)}")


class Lines:
    """Progress where there is no terminal: a plain line on stderr at every tenth of the work."""

    def __init__(self, total: int, describe: Callable[[int], str], done: int = 0):
        """`describe` makes the line from the amount done, which counts from `done` to `total`."""
        self.total, self.describe, self.done = total, describe, done
        self.next = 10 * done // total + 1 if done else 0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.done += count
        if 10 * self.done >= self.next * self.total:
            print(self.describe(self.done), file=sys.stderr)
            self.next = 10 * self.done // self.total + 1
