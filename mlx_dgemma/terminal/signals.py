"""Ctrl-C, SIGTERM and a terminal's hang-up end a command at any moment, with the shell's exit codes: 130, 143, 129.

All raise KeyboardInterrupt where the command is, or at the end of what must not be cut in two (`uninterrupted`). Until
that has left all calls another signal is not raised, so that it cuts no cleaning up in two either. One that falls into
an import waits for its end: a compiled module whose import is interrupted ends in an abort, or in an error that says
nothing of it. One that falls into a destructor, which swallows it, is raised again by `check`.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN = 0.02  # seconds until another look at whether an import is over
APART = 1.0  # seconds: sooner after one that was raised, another is taken for the same


class _State:
    """Of this process."""

    def __init__(self) -> None:
        self.received: int | None = None  # the last signal
        self.is_pending = False  # nobody has dealt with it
        self.raised_at = -math.inf
        self.held = 0  # how many want none now
        self.is_dealt_with = False  # the command is saying what happened: another changes nothing


_state = _State()


def begin() -> None:
    """First thing in a process that is a command: signals wait from here on, while it is imported, for `release`."""
    _state.held = 1
    for number in _ours():
        signal.signal(number, _receive)


def exit_code(otherwise: int = 128 + signal.SIGINT) -> int:
    """Of a command that a signal ended; `otherwise` if none did."""
    return otherwise if _state.received is None else 128 + _state.received


def came() -> bool:
    """Whether there was a signal at all."""
    return _state.received is not None


def check() -> None:
    """Raises KeyboardInterrupt if a signal came that nobody has dealt with, or is just about to."""
    if _state.is_pending and not _state.held and time.monotonic() - _state.raised_at > APART:
        _raise()


def hold() -> None:
    """No more of them until the end: what is left is to say what happened."""
    _state.held += 1
    _state.is_pending, _state.is_dealt_with = False, True


def forgive() -> bool:
    """Whether it was a Ctrl-C that ended what was going on, and nothing more: then the command goes on."""
    if _state.received != signal.SIGINT:
        return False
    _state.received, _state.is_pending, _state.raised_at = None, False, -math.inf
    return True


def release() -> None:
    """Whoever calls this is ready for a KeyboardInterrupt, and gets the one that has waited."""
    if _is_main():
        _state.held = 0
        check()


def close() -> None:
    """The command is done: no more signals. Raises KeyboardInterrupt if one came that nobody has dealt with."""
    if _is_main():
        _state.held += 1
        if _state.is_pending and not _state.is_dealt_with:
            _raise()


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
    """Deals with signals in here, from `release` on, unless whoever started the process has them ignored (`nohup`).

    Args:
        ends_process: nothing but the interpreter's end follows, in which no signal is of use.
    """
    if not _is_main():
        yield
        return
    before, hook = {number: signal.getsignal(number) for number in _ours()}, sys.unraisablehook
    held, _state.held, _state.raised_at = _state.held, _state.held + 1, -math.inf
    _state.is_dealt_with = False
    if not held:  # else `begin` may have got one
        _state.received, _state.is_pending = None, False
    try:
        sys.unraisablehook = _swallowed
        for number in before:
            signal.signal(number, _receive)
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _look)
        yield
    finally:
        _state.held += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends_process else handler)
        sys.unraisablehook = hook
        _state.held, _state.is_pending = held, False


def _ours() -> list[int]:
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _receive(number: int, frame: FrameType | None) -> None:
    _state.received, _state.is_pending = number, True
    _look(number, frame)


def _look(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        check()
    elif _state.is_pending and not _state.held:
        signal.setitimer(signal.ITIMER_REAL, AGAIN)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _raise() -> None:
    _state.raised_at = time.monotonic()
    raise KeyboardInterrupt


def _swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
    """Says nothing of an interrupt in a destructor, which `check` raises again."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _state.raised_at = -math.inf
    else:
        sys.__unraisablehook__(unraisable)
