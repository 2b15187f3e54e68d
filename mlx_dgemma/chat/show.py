"""How answers look: the canvas while it is denoised, then Markdown on a terminal, plain text elsewhere."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Collection
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markdown import Markdown

from mlx_dgemma.terminal.plain import harmless, line
from mlx_dgemma.terminal.progress import ProgressLine, fit, terminal_size
from mlx_dgemma.terminal.result import images
from mlx_dgemma.terminal.watch import live_canvas, terminal

if TYPE_CHECKING:
    from mlx_dgemma.checkpoint.tokenizer import Tokenizer
    from mlx_dgemma.diffusion.events import DenoisingStep
    from mlx_dgemma.text.events import GenerationResult, TextCanvas


class Shown:
    """One answer while it is written."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Collection[int], *, watch: bool, delay: float):
        progress = ProgressLine(enabled=True)
        can_watch = watch and terminal() is not None
        self._canvas = live_canvas(progress, tokenizer, stops, delay) if can_watch else progress
        self._console = Console(highlight=False) if sys.stdout.isatty() else None
        self._held = ""  # text whose block is not complete
        self._thought = ""

    def step(self, event: DenoisingStep) -> None:
        self._canvas.step(event)

    def canvas(self, event: TextCanvas) -> None:
        """A committed canvas: its complete blocks are shown, the last may go on."""
        self._canvas.clear()
        self._thought += event.thought
        if self._console is None:
            self._canvas.text(event.text)
            return
        if self._thought and (event.text or event.finish_reason):
            self._fold()
        self._held += event.text
        whole = _complete(self._held)
        self._print(self._held[:whole])
        self._held = self._held[whole:]

    def end(self, result: GenerationResult) -> None:
        """The rest, and the calls that the model makes."""
        self._canvas.clear()
        if self._console is None:
            if result.text and not result.text.endswith("\n"):
                sys.stdout.write("\n")
        else:
            self._fold()
            self._print(self._held)
        for call in result.tool_calls:
            arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
            sys.stdout.write(line(f"→ {call.name}({arguments})") + "\n")
        sys.stdout.flush()

    def _fold(self) -> None:
        """The thought as one dim line."""
        if self._thought.strip() and self._console is not None:
            shown = line(" ".join(harmless(self._thought).split()))
            self._console.print(fit(f"thought: {shown}", self._console.width - 1), style="dim", markup=False)
        self._thought = ""

    def _print(self, text: str) -> None:
        if text.strip() and self._console is not None:
            self._console.print(Markdown(harmless(text)))


def _complete(text: str) -> int:
    """How many characters are blocks of Markdown that nothing can change: up to the last blank line outside code."""
    end = position = 0
    is_code = False
    for row in text.splitlines(keepends=True):
        position += len(row)
        if row.lstrip().startswith("```"):
            is_code = not is_code
        elif not row.strip() and not is_code and row.endswith("\n"):
            end = position
    return end


def figures(result: GenerationResult) -> str:
    """What an answer took, in a line."""
    stats, steps = result.stats, " + ".join(map(str, result.steps_per_canvas)) or "0"
    cached = f"{stats.cached_tokens} of {stats.prompt_tokens} cached{images(stats)}"
    speed = f"{stats.tokens} tokens · {stats.tokens_per_second:.1f} tokens/s"
    return f"{speed} · steps {steps} · work {stats.work:.3f} · {cached} · {result.finish_reason}"


def dim(text: str) -> None:
    """Lines on stderr, dimmed and wrapped at words where that can be."""
    rows = list(map(line, text.split("\n")))
    if not sys.stderr.isatty():
        sys.stderr.write("".join(f"{row}\n" for row in rows))
        return
    width = max(10, terminal_size().columns - 1)
    wrapped = "\n".join("\n".join(textwrap.wrap(row, width, subsequent_indent="  ")) for row in rows)
    sys.stderr.write(f"{wrapped}\n" if os.environ.get("NO_COLOR") else f"\x1b[2m{wrapped}\x1b[22m\n")
    sys.stderr.flush()
