"""Where a text ends before its budget does: at a text that the user named, or in a loop."""

from collections.abc import Sequence

PERIOD = 8  # tokens, of a loop inside a canvas
CANVAS = 4 * PERIOD  # positions, of the smallest canvas that can show one


class StopTexts:
    """Cuts growing text at the first of some texts; what may turn out to begin one waits."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held, self._shown = "", 0
        self.found = ""  # which of them
        self.end = 0  # of the text that was found, in characters of the whole

    def add(self, text: str, *, final: bool) -> str:
        """What can be shown now; nothing once one was found."""
        if self.found:
            return ""
        self._held += text
        places = [(at, len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            at, length, self.found = min(places)
            self.end = self._shown + at + length
            return self._held[:at]
        waiting = 0 if final else max((_begun(self._held, stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - waiting]
        self._held, self._shown = self._held[len(shown) :], self._shown + len(shown)
        return shown


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text begin the stop text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def repeats(canvas: Sequence[int], previous: Sequence[int]) -> bool:
    """Whether a canvas is the one before it again, or says one thing of a few tokens from end to end."""
    if len(canvas) < CANVAS:
        return False
    return canvas == previous or any(canvas[period:] == canvas[:-period] for period in range(1, PERIOD + 1))
