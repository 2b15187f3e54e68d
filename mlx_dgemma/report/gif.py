"""A run as an animated GIF, a frame a step."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_dgemma.files import write_whole
from mlx_dgemma.report.layout import ADVANCE, Frame, Grid, frames, glyphs, grid, headline, origin, place
from mlx_dgemma.report.svg import CLASSES, LIGHT, colour_of
from mlx_dgemma.trace.trace import Trace

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

WIDTH, NARROW, MARGIN, TITLE, HEADING = 720, 480, 24, 20, 14  # pixels; narrow where columns are given and few
STEP, LAST = 300, 3000  # milliseconds that a frame is shown, and the last one
COLOURS = dict(zip(CLASSES, LIGHT, strict=True))
SHADES = 12  # of each colour, for the edges of letters


def write_gif(trace: Trace, path: str | Path, across: int | None = None) -> None:
    """Writes the animation of a trace: every step of its first sample, canvas by canvas.

    Args:
        trace: the run.
        path: of the file.
        across: columns; None takes as many as fit.

    Raises:
        DGemmaError: the file cannot be written there.
    """
    first, *others = _images(trace, across)
    times = [STEP] * len(others) + [LAST]
    options = dict(save_all=True, append_images=others, duration=times, loop=0, optimize=False)
    write_whole(path, lambda file: first.save(file, "GIF", **options))


def _images(trace: Trace, across: int | None) -> "Iterator[Image]":
    from PIL import Image, ImageDraw

    shown = frames(trace)
    cells = grid(shown, WIDTH - 2 * MARGIN, across)
    width = WIDTH if across is None else max(NARROW, round(cells.width) + 2 * MARGIN)
    size = width, round(2 * MARGIN + 2.2 * TITLE + 1.8 * HEADING + cells.height)
    palette = _palette()
    for step, frame in enumerate(shown):
        image = Image.new("RGB", size, COLOURS["panel"])
        draw = ImageDraw.Draw(image)
        _heading(draw, trace, step)
        _canvas(draw, frame, cells, ((width - cells.width) / 2, size[1] - MARGIN - cells.height))
        yield image.quantize(palette=palette, dither=Image.Dither.NONE)


def _heading(draw: "ImageDraw", trace: Trace, step: int) -> None:
    """The prompt, below it the step, and at the right the model and the seed."""
    width, y = draw.im.size[0], MARGIN + TITLE
    title, where = headline(trace, int((width - 2 * MARGIN) / ADVANCE / TITLE)), place(trace, step)
    about = origin(trace, int((width - 2 * MARGIN) / ADVANCE / HEADING) - len(where) - 2)
    draw.text((MARGIN, y), title, COLOURS["l0"], _font(TITLE, "Bold"), "ls")
    draw.text((MARGIN, y + 2 * HEADING), where, COLOURS["muted"], _font(HEADING), "ls")
    draw.text((width - MARGIN, y + 2 * HEADING), about, COLOURS["muted"], _font(HEADING), "rs")


def _canvas(draw: "ImageDraw", frame: Frame, cells: Grid, corner: tuple[float, float]) -> None:
    font, (left, top) = _font(cells.font), corner
    for glyph in glyphs(frame, cells.columns):
        x = left + (glyph.column + glyph.width / 2) * cells.pitch
        base = top + (glyph.row + 0.5) * cells.leading + 0.35 * cells.font
        colour = COLOURS[colour_of(glyph.level, glyph.clamped)]
        draw.text((x, base), glyph.text, colour, font, "ms")
        if glyph.clamped:
            half, below = glyph.width * cells.pitch / 2, base + 0.25 * cells.font
            draw.line((x - half, below, x + half, below), colour, 2)


def _palette() -> "Image":
    """An image whose palette has every colour and its shades towards the paper: the same for all frames."""
    from PIL import Image, ImageColor

    paper = ImageColor.getrgb(COLOURS["panel"])
    shades = []
    for name in ("l0", "clamped", "settled"):  # the greys lie between paper and ink
        ink = ImageColor.getrgb(COLOURS[name])
        for shade in range(SHADES):
            shades += [round(p + (i - p) * shade / (SHADES - 1)) for p, i in zip(paper, ink, strict=True)]
    image = Image.new("P", (1, 1))
    image.putpalette(shades)
    return image


def _font(size: float, weight: str = "") -> "FreeTypeFont | ImageFont":
    """DejaVu Sans Mono, which matplotlib brings; else Pillow's own."""
    from PIL import ImageFont

    found = find_spec("matplotlib")
    places = found.submodule_search_locations if found else None
    path = Path(places[0] if places else "") / f"mpl-data/fonts/ttf/DejaVuSansMono{weight and f'-{weight}'}.ttf"
    return ImageFont.truetype(path, size) if path.is_file() else ImageFont.load_default(size)
