"""What pictures of a run share: the canvas of a step as glyphs on a grid of cells, and which steps to show."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_dgemma.report.texts import RecordedTexts, one_line, stops
from mlx_dgemma.terminal.watch import FILLER, NEWLINE, NOISE, STOP, columns, drawn, levels
from mlx_dgemma.text.messages import text_of
from mlx_dgemma.trace.trace import Trace

Frame = tuple[tuple[str, int, bool], ...]  # text, level and whether clamped, of each position that is drawn
ADVANCE, LEADING = 0.62, 1.5  # of a monospace font: columns and rows, in font sizes
FONT_SIZES = (28, 24, 20, 17, 15, 13, 12, 11)  # pixels
PADDING, DOT = "\ue000", (FILLER, NOISE, False)  # one that no other token is drawn as; what there is in its place
ROWS, MAX_PITCH = 6, 44  # rows that a smaller font is taken for; columns are no wider, in pixels


def frames(trace: Trace) -> list[Frame]:
    """What is drawn at every step, of the first sample: padding is a faint dot, behind the text it is nothing."""
    texts, ends = RecordedTexts(trace), stops(trace)
    found: list[Frame] = []
    texts.update((token, PADDING) for token, piece in trace.pieces.items() if piece == "<pad>")
    for step in range(len(trace.step)):
        clamped = trace.clamped[step, 0].tolist()
        rested = (~trace.computed[step]).tolist()
        states = levels(trace.entropy[step, 0].tolist(), trace.accepted[step, 0].tolist(), clamped, rested)
        shown = drawn(trace.draft[step, 0].tolist(), states, clamped, texts, ends)
        cells = [DOT if cell[0] == PADDING else cell for cell in shown]
        while cells and cells[-1] == DOT:
            cells.pop()
        found.append(tuple(cells))
    return found


def chosen(shown: list[Frame], count: int = 4) -> list[int]:
    """The first step, the last, and some between, equal shares of the uncertainty apart; fewer if fewer differ."""
    differ = [0, *(i for i in range(1, len(shown)) if shown[i] != shown[i - 1])]
    differ[-1] = len(shown) - 1  # the last step stands for those before it that look the same
    if len(differ) <= count:
        return differ
    doubts = [sum(max(level, 0) for text, level, _ in shown[i] if text != FILLER) for i in differ]
    picked = [0]
    for part in range(1, count - 1):
        wanted = doubts[0] + (doubts[-1] - doubts[0]) * part / (count - 1)
        left = range(picked[-1] + 1, len(differ) - (count - 1 - part))
        picked.append(min(left, key=[abs(doubt - wanted) for doubt in doubts].__getitem__))
    return [differ[i] for i in (*picked, len(differ) - 1)]


@dataclass(frozen=True)
class Glyph:
    """A character and its combining marks, in a place.

    Attributes:
        text: what is drawn.
        column, row, width: in cells; wide characters take two columns.
        level: 0 if accepted or clamped, SETTLED, else how uncertain, as in `levels`.
        clamped: whether a steered canvas keeps it fixed.
    """

    text: str
    column: int
    row: int
    width: int
    level: int
    clamped: bool


def glyphs(frame: Frame, across: int) -> list[Glyph]:
    """The glyphs of a frame in rows of `across` columns (2 or more); a newline is shown and ends its row.

    A token that does not fit into the rest of a row begins the next one, without the space before it.
    """
    placed: list[Glyph] = []
    column = row = 0
    for text, level, clamped in frame:
        level = max(level, 2) if text == STOP else level  # quieter: it is no text
        if column and column + (width := columns(text.split("\n")[0])) > across >= width:
            column, row, text = 0, row + 1, text.removeprefix(" ")
        for character in text:
            if unicodedata.category(character).startswith("M"):
                if placed and placed[-1].text != NEWLINE:
                    before = placed.pop()
                    wider = unicodedata.category(character) == "Mc" and column < across  # a mark beside its letter
                    placed.append(replace(before, text=before.text + character, width=before.width + wider))
                    column += wider
                    continue
                character = "◌" + character
            width = min(columns(character[0]), 2)
            if column + width > across:
                column, row = 0, row + 1
            placed.append(Glyph(character.replace("\n", NEWLINE), column, row, width, level, clamped))
            column = across if character == "\n" else column + width
    return placed


@dataclass(frozen=True)
class Grid:
    """Cells for the glyphs of some frames, all in the same place; sizes in pixels."""

    columns: int
    rows: int
    font: float
    pitch: float
    leading: float

    @property
    def width(self) -> float:
        return self.columns * self.pitch

    @property
    def height(self) -> float:
        return self.rows * self.leading


def grid(shown: Iterable[Frame], width: float, across: int | None = None) -> Grid:
    """The grid of some frames, at most `width` pixels wide: `across` columns, or a font as large as few rows allow."""
    shown = list(shown)
    if across is not None:
        pitch = min(width / across, MAX_PITCH)
        font = min(pitch / ADVANCE, FONT_SIZES[0])
        return Grid(across, _rows(shown, across), font, pitch, max(LEADING * font, pitch))
    for font in FONT_SIZES:
        fitting = int(width / (ADVANCE * font))
        rows = _rows(shown, fitting)
        if rows <= ROWS:
            break
    return Grid(fitting, rows, font, ADVANCE * font, LEADING * font)


def _rows(shown: list[Frame], across: int) -> int:
    return 1 + max((glyph.row for frame in shown for glyph in glyphs(frame, across)), default=0)


def headline(trace: Trace, length: int) -> str:
    """The prompt on one line of at most so many characters: of messages the last."""
    prompt = trace.prompt
    if not isinstance(prompt, str):
        last = prompt[-1] if prompt else ""
        prompt = text_of(last["content"]) if isinstance(last, dict) else f"token ids {' '.join(map(str, prompt))}"
    return one_line(prompt, length)


def origin(trace: Trace, length: int) -> str:
    """The model and the seed on one line of at most so many characters; of a local folder its name only."""
    seed = " · own noise" if trace.seed is None else f" · seed {trace.seed}"
    path, name = Path(trace.model_id), trace.model_id
    if path.is_absolute() or name.startswith((".", "~")) or len(name + seed) > length:
        name = path.name
    return one_line(name, length - len(seed)) + seed


def place(trace: Trace, step: int) -> str:
    """Which step of its canvas, and which canvas if there are several."""
    index = trace.canvas_index[step]
    canvas = f"canvas {index + 1} of {trace.canvas_index[-1] + 1} · " if trace.canvas_index[-1] else ""
    return f"{canvas}step {trace.step[step]} of {trace.step[trace.canvas_index == index][-1]}"
