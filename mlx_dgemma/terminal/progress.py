"""One progress line on a terminal that also shows the text: drawn on the row below the text's last, and taken away."""

import os
import sys
import unicodedata

from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.terminal.plain import harmless

CLEAR = "\r\x1b[K"
UP = "\x1b[A"


class ProgressLine:
    """Draws on stderr while steps run; `text` goes to stdout untouched by it. Inactive unless stderr is a terminal."""

    def __init__(self, enabled: bool):
        self.enabled = enabled and sys.stderr.isatty()
        self._shares_terminal = sys.stdout.isatty()
        self._line = ""  # the text's last line; on which row it ends depends on the terminal's width
        self._drawn = False

    def step(self, event: DenoisingStep) -> None:
        """Shows a denoising step."""
        if self.enabled:
            self.show(step_line(event))

    def show(self, line: str) -> None:
        if self.enabled:
            below = "\n" if not self._drawn and self._is_below_text() else ""
            sys.stderr.write(below + CLEAR + fit(line, terminal_size().columns - 1))
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Takes the line away and puts the cursor where the text ends."""
        if self._drawn:
            back = UP + "\r" + last_row(self._line, terminal_size().columns) if self._is_below_text() else ""
            sys.stderr.write(CLEAR + back)
            sys.stderr.flush()
            self._drawn = False

    def _is_below_text(self) -> bool:
        return self._shares_terminal and bool(self._line)

    def text(self, text: str) -> None:
        """Writes text to stdout; on a terminal its control characters are shown, not sent."""
        self.clear()
        text = harmless(text) if self._shares_terminal else text
        sys.stdout.write(text)
        sys.stdout.flush()
        self._line = (self._line + text).rsplit("\n", 1)[-1]


def step_line(step: DenoisingStep) -> str:
    """A denoising step in figures."""
    max_steps = step.step + step.remaining - 1
    computed = "" if step.computed is None else f" · computed {len(step.computed)}/{step.accepted.shape[1]}"
    return (
        f"canvas {step.canvas_index + 1} · step {step.step}/{max_steps} · temperature {step.temperature:.2f} · "
        f"accepted {step.accepted_count}/{step.accepted.size} · entropy {step.mean_entropy:.3f}"
        f"{computed}"
    )


def terminal_size() -> os.terminal_size:
    """Of the terminal on stderr, asked each time, as it may be resized; 80 × 24 if it does not know."""
    size = os.get_terminal_size(sys.stderr.fileno())
    return size if size.columns and size.lines else os.terminal_size((80, 24))


def cells(character: str) -> int:
    """Columns a character takes on a terminal."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(line: str, width: int) -> str:
    """The part of a line that fits into `width` columns."""
    used = 0
    for i, character in enumerate(line):
        used += cells(character)
        if used > width:
            return line[:i]
    return line


def last_row(text: str, width: int) -> str:
    """What a terminal of `width` columns shows of a text on its last row."""
    row = text.rsplit("\n", 1)[-1]
    while len(head := fit(row, width)) < len(row) and head:
        row = row[len(head) :]
    return row
