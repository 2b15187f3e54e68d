"""Where questions come from: a line with history and completion on a terminal, the lines of stdin elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from mlx_dgemma.chat.commands import COMMANDS
from mlx_dgemma.errors import DGemmaError

PROMPT = "> "
Read = Callable[[], str | None]  # the next line, None when there are no more


def reader() -> Read:
    """A terminal's line if stdin and stdout are one, stdin's lines otherwise."""
    return _typed() if sys.stdin.isatty() and sys.stdout.isatty() else _piped


def _piped() -> str | None:
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", "surrogateescape").rstrip("\r\n") if line else None


def _typed() -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")  # Alt-Enter
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    file = history_file()
    history: History = InMemoryHistory() if file is None else FileHistory(str(file))
    completer = WordCompleter(list(COMMANDS), sentence=True)
    session: PromptSession[str] = PromptSession(
        PROMPT, history=history, completer=completer, complete_while_typing=False, key_bindings=keys
    )

    def read() -> str | None:
        while True:
            try:
                return session.prompt()
            except KeyboardInterrupt:  # what was typed is given up
                continue
            except EOFError:
                return None

    return read


def history_file() -> Path | None:
    """Where lines are remembered, readable by the user only; None where nothing can be written."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(home).expanduser() / "mlx-dgemma" / "chat-history"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except (OSError, DGemmaError):
        return None
    return file
