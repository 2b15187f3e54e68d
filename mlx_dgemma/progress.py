"""One progress line on a terminal that also shows the text: drawn over the text's last row, which is put back after."""

import shutil
import sys
import unicodedata

CLEAR = "\r\x1b[K"


class ProgressLine:
    """Draws on stderr while steps run; `text` goes to stdout untouched by it. Inactive unless stderr is a terminal."""

    def __init__(self, enabled: bool):
        self.enabled = enabled and sys.stderr.isatty()
        self._shares_terminal = sys.stdout.isatty()
        self._row = ""  # what stands on the text's last row
        self._drawn = False

    def show(self, line: str) -> None:
        if self.enabled:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(CLEAR + fit(line, width))
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Takes the line away and puts the text's last row back."""
        if self._drawn:
            sys.stderr.write(CLEAR + (self._row if self._shares_terminal else ""))
            sys.stderr.flush()
            self._drawn = False

    def text(self, text: str) -> None:
        """Writes text to stdout."""
        self.clear()
        sys.stdout.write(text)
        sys.stdout.flush()
        self._row = last_row(self._row + text, shutil.get_terminal_size().columns)


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
