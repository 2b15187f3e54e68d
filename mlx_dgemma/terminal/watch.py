"""The canvas, redrawn in place on stderr at each denoising step; committed text goes to stdout above it.

`picture` draws one step as rows that fit a terminal; `LiveCanvas` puts them there and takes them away.
"""

import functools
import math
import os
import sys
import textwrap
import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.model import host
from mlx_dgemma.terminal import signals
from mlx_dgemma.terminal.cli import as_utf8
from mlx_dgemma.terminal.plain import NOT_DRAWABLE, drawable
from mlx_dgemma.terminal.progress import ProgressLine, cells, fit, last_row, step_line, terminal_size
from mlx_dgemma.text.template import given_end

UNCERTAIN = (0.1, 0.5, 1.5)  # nats: a position that is not accepted is a shade fainter from each of these on
NOISE = len(UNCERTAIN) + 1  # the level from the last of them on, where no token is shown
SHADES = {"dark": ("grey74", "grey54", "grey39", "grey27"), "light": ("grey35", "grey54", "grey66", "grey82")}
SETTLED = -1  # the level of a position that was not computed again
RESTING = {"dark": "sky_blue2", "light": "deep_sky_blue4"}
NOISE_CELL, STOP, FILLER, NEWLINE = "░", "■", "·", "↵"
HALF_FLAGS = frozenset(map(chr, range(0x1F1E6, 0x1F200)))  # two make a flag; alone they are one column wide, or two
Row = list[Segment]


def live_canvas(
    progress: ProgressLine, tokenizer: Tokenizer | None, stops: Collection[int], delay: float = 0.0
) -> ProgressLine:
    """The live canvas; where stderr cannot show it, `progress`, after a line that says so.

    Args:
        progress: what shows the steps otherwise.
        tokenizer: None shows token ids.
        stops: ids of the stop tokens.
        delay: seconds that each step is seen at least.
    """
    console = terminal()
    if console is not None:
        return LiveCanvas(console, TokenTexts(tokenizer), stops, delay)
    print("--watch needs a terminal on stderr; showing progress instead", file=sys.stderr)
    return progress


def terminal() -> Console | None:
    """The terminal on stderr, ready to be drawn on; None where there is none that can show a canvas."""
    console = Console(stderr=True)
    # rich can be told to take a file for a terminal, which has no size to fit
    if not (sys.stderr.isatty() and console.is_terminal and console.is_interactive):
        return None
    as_utf8(sys.stderr)
    return console


class LiveCanvas(ProgressLine):
    """Draws canvases on a rich console that is the terminal on stderr; they go on where the text ends."""

    def __init__(self, console: Console, texts: "TokenTexts", stops: Collection[int], delay: float = 0.0):
        super().__init__(enabled=True)
        self._delay, self._drawn_at = delay, -math.inf
        self._console, self._texts, self._stops = console, texts, stops
        self._shade = "light" if os.environ.get("COLORFGBG", "").endswith((";7", ";15")) else "dark"
        self._live: Live | None = None
        self._widths: list[int] = []  # of the rows on the screen, in columns

    def step(self, event: DenoisingStep) -> None:
        self._wait()
        with signals.uninterrupted():
            self._measure()
            rows = picture(event, self._texts, self._stops, terminal_size(), self._shade, self._before())
            live = self._live or self._start()
            live.update(Segments(_joined(rows)), refresh=True)
            self._widths = [sum(segment.cell_length for segment in row) for row in rows]
        self._drawn_at = time.monotonic()

    def text(self, text: str) -> None:
        self._wait()
        super().text(text)

    def _wait(self) -> None:
        """Until the step on the screen has been seen."""
        left = self._drawn_at + self._delay - time.monotonic()
        if left > 0:
            time.sleep(left)

    def clear(self) -> None:
        """Takes the canvas away and puts the cursor where the text ends."""
        if self._live is not None:
            with signals.uninterrupted():
                self._measure()
                self._live.update(Text(""))
                self._live.stop()
                self._live, self._widths = None, []
                if before := self._before():
                    sys.stderr.write(before)
                    sys.stderr.flush()
        super().clear()

    def _before(self) -> str:
        """The row of the terminal that the text ends in, which the canvas goes on with."""
        return last_row(self._line, terminal_size().columns) if self._shares_terminal and self._line else ""

    def _start(self) -> Live:
        if self._before():
            sys.stderr.write("\r")
        live = self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        live.start()
        return live

    def _measure(self) -> None:
        """Takes the terminal's size; a narrower one wrapped our rows, and rich erases only as many as it has drawn."""
        size = terminal_size()
        wrapped = sum((width - 1) // size.columns for width in self._widths if width)
        sys.stderr.write("\x1b[2K\x1b[A" * min(wrapped, size.lines - 1))
        self._console.size = size


class TokenTexts(dict[int, str]):
    """What to draw for a token id, decoded when first asked for; ids themselves without a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None):
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        text = f"{token} " if self._tokenizer is None else drawable(self._tokenizer.decode([token]))
        self[token] = text
        return text


def picture(
    step: DenoisingStep,
    texts: TokenTexts,
    stops: Collection[int],
    size: os.terminal_size,
    shade: str = "dark",
    before: str = "",
) -> list[Row]:
    """One denoising step (row 0 of a batch) as rows of segments: the draft, then the step in figures.

    Args:
        step: the step; accepted positions are plain, others fainter with entropy and noise at last, clamped ones bold
            and underlined, those that have settled blue.
        texts: what to draw for an id.
        stops: ids of the stop tokens; no tokens are drawn behind the first.
        size: the terminal's columns and lines. Rows leave its last column free, and together two of its lines: one for
            the text's last row above, one for the cursor below.
        shade: the terminal's background, "dark" or "light".
        before: what stands before the canvas in its first row.
    """
    width, height = max(1, size.columns - 1), max(1, size.lines - 2)
    pieces = _pieces(step, texts, stops, shade)
    rows = wrapped([*([(drawable(before), Style.null())] if before else []), *pieces], width)
    # two columns less: a terminal echoes Ctrl-C as ^C behind the last row
    figures = textwrap.wrap(step_line(step), max(1, width - 2))[:height]
    room = height - len(figures)
    if len(rows) > room:
        kept = max(0, room - 1)
        more = Segment(fit(f"… {len(rows) - kept} more rows", width), Style.parse("cyan"))
        rows = [*rows[:kept], [more]][:room]
    return [*rows, *([Segment(line, Style.parse("cyan"))] for line in figures)]


def _pieces(step: DenoisingStep, texts: TokenTexts, stops: Collection[int], shade: str) -> Iterator[tuple[str, Style]]:
    """Text and style of each position that is drawn."""
    clamped = [False] * step.draft.shape[1] if step.clamped is None else host.flags(step.clamped[0])
    computed = range(step.draft.shape[1]) if step.computed is None else frozenset(step.computed)
    rested = [position not in computed for position in range(step.draft.shape[1])]
    states = levels(host.floats(step.entropy[0]), host.flags(step.accepted[0]), clamped, rested)
    styles = {0: "none", SETTLED: RESTING[shade], **dict(enumerate(SHADES[shade], 1))}
    for text, level, fixed in drawn(host.ints(step.draft[0]), states, clamped, texts, stops):
        yield text, Style.parse("bold underline" if fixed else styles[level])


def levels(
    entropy: Iterable[float], accepted: Iterable[bool], clamped: Iterable[bool], rested: Sequence[bool] = ()
) -> list[int]:
    """How uncertain each position is: 0 if accepted or clamped, from 1 on by entropy in nats, NOISE at last.

    An accepted position that was not computed in the step is SETTLED.
    """
    positions = zip(entropy, accepted, clamped, strict=True)
    found = [0 if sure or fixed else 1 + bisect_right(UNCERTAIN, nats) for nats, sure, fixed in positions]
    return [level or -own for level, own in zip(found, rested, strict=True)] if rested else found


def text_end(draft: Sequence[int], states: Sequence[int], clamped: Sequence[bool], stops: Collection[int]) -> int:
    """The position of the stop token that ends the text (the length of the draft without one), from `levels`.

    A stop token in a gap of a steered canvas ends nothing: what is given behind it belongs to the text.
    """
    at_least = given_end([token if fixed else None for token, fixed in zip(draft, clamped, strict=True)], stops)
    ends = (i for i in range(at_least, len(draft)) if draft[i] in stops and states[i] < NOISE)
    return next(ends, len(draft))


def drawn(
    draft: Sequence[int], states: Sequence[int], clamped: Sequence[bool], texts: TokenTexts, stops: Collection[int]
) -> Iterator[tuple[str, int, bool]]:
    """Text, level and whether clamped, by position; behind the end there is a filler, nothing once it is settled."""
    end = text_end(draft, states, clamped, stops)
    for token, level, fixed in zip(draft[: end + 1], states, clamped, strict=False):
        text = STOP if token in stops else texts[token]
        yield NOISE_CELL * (columns(text) or 1) if level == NOISE else text, level, fixed
    if end < len(draft) and states[end] > 1:
        yield from [(FILLER, NOISE, False)] * (len(draft) - end - 1)


def wrapped(pieces: Iterable[tuple[str, Style]], width: int) -> list[Row]:
    """Rows of at most `width` columns; newlines are shown and end a row."""
    rows: list[Row] = []
    used = width
    for text, style in pieces:
        for character in text:
            glyph = NEWLINE if character == "\n" else character
            if not rows and not columns(glyph):
                glyph = "◌" + glyph  # a combining mark would join whatever stands above
            if columns(glyph) > width:
                glyph = NOT_DRAWABLE
            size = columns(glyph)
            if used + size > width:
                rows.append([])
                used = 0
            rows[-1].append(Segment(glyph, style))
            used = width if character == "\n" else used + size
    return [list(Segment.simplify(row)) for row in rows]


@functools.lru_cache(1 << 16)
def columns(text: str) -> int:
    """Columns a text may take, the most of several opinions: a row too long would break the picture."""
    return sum(max(cells(c), cell_len(c), 2 * (c in HALF_FLAGS)) for c in text.replace("\n", NEWLINE))


def _joined(rows: list[Row]) -> Row:
    return [segment for i, row in enumerate(rows) for segment in ([Segment.line()] if i else []) + row]
