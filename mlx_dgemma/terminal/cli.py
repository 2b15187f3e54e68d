"""What the command lines share: a parser with one-line errors, exit codes, plain progress lines. No heavy imports."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import NoReturn

from mlx_dgemma.errors import DGemmaError


class Parser(argparse.ArgumentParser):
    """Bad usage is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def exit_code(run: Callable[[], int], interrupted: str) -> int:
    """Runs a command and returns its exit code: 1, and one line on stderr, if it failed or was interrupted.

    Args:
        run: does the work, writes to stdout, returns the exit code.
        interrupted: what to say after a Ctrl-C that `run` did not handle itself.
    """
    try:
        sys.stdout.reconfigure(encoding="utf-8")
        code = run()
        sys.stdout.flush()
        return code
    except DGemmaError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
    except BrokenPipeError:  # the reader of stdout went away, as `head` does
        _give_up_stdout()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        _give_up_stdout()
    return 1


def require(*packages: str) -> None:
    """Checks that packages are there which only some people need.

    Raises:
        DGemmaError: what is missing, and how to get it.
    """
    missing = [name for name in packages if find_spec(name.replace("-", "_")) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise DGemmaError(f"{' and '.join(missing)} {verb} not installed; pip install {' '.join(missing)}")


def _give_up_stdout() -> None:
    """Forgets what cannot be written to stdout: Python would try again at exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
