"""Ctrl-C and SIGTERM end a command at any moment, with the shell's exit codes: 130 and 143.

Both raise KeyboardInterrupt where the command is, or at the end of what must not be cut in two (`uninterrupted`). One
that falls into a destructor, which swallows it, is raised again by `check`.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """Of this process."""

    def __init__(self) -> None:
        self.received: int | None = None  # the last signal
        self.is_pending = False  # nobody has dealt with it
        self.held = 0  # how many want none now


_state = _State()


def exit_code() -> int:
    """Of a command that a signal ended."""
    return 128 + (_state.received or signal.SIGINT)


def check() -> None:
    """Raises KeyboardInterrupt if a signal came that nobody has dealt with."""
    if _state.is_pending and not _state.held:
        raise KeyboardInterrupt


def settle() -> None:
    """Says that the signal was dealt with."""
    _state.is_pending = False


def hold() -> None:
    """No more of them until the end: what is left is to say what happened."""
    _state.held += 1
    settle()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What must not be cut in two: importing compiled modules, drawing half a picture. A signal waits for its end."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
    check()


@contextmanager
def heeded(*, ends_process: bool) -> Iterator[None]:
    """Deals with both signals in here, unless whoever started the process has them ignored, as `nohup` does.

    Args:
        ends_process: nothing but the interpreter's end follows, in which no signal is of use.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held, before = _state.held, {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    hook = sys.unraisablehook
    settle()
    try:
        sys.unraisablehook = _swallowed
        for number in ours:
            signal.signal(number, _receive)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_IGN if ends_process else before[number])
        sys.unraisablehook = hook
        _state.held = held
        settle()


def _receive(number: int, frame: FrameType | None) -> None:
    _state.received, _state.is_pending = number, True
    check()


def _swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
    """Says nothing of an interrupt in a destructor, which `check` raises again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
