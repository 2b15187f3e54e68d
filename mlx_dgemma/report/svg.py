"""One canvas at four steps as an SVG: text that stands by itself and follows the reader's light or dark colours."""

import html
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from mlx_dgemma.files import write_whole
from mlx_dgemma.report.layout import ADVANCE, Frame, Glyph, Grid, chosen, frames, glyphs, grid, headline, origin, place
from mlx_dgemma.report.texts import one_line
from mlx_dgemma.terminal.watch import NOISE_CELL, SETTLED, STOP, UNCERTAIN
from mlx_dgemma.trace.trace import Trace

WIDTH, MARGIN, GAP, PADDING = 880, 28, 16, 18  # pixels: of a README's column, around, between and within panels
TITLE, HEADING, LEGEND = 22, 15, 15  # font sizes, pixels
# paper, panel, line, ink, muted, the levels of positions that are not accepted, clamped, settled
LIGHT = (
    "#fbfaf7",
    "#ffffff",
    "#dcd7cc",
    "#24211c",
    "#696359",
    "#5f5a52",
    "#857f75",
    "#aaa498",
    "#cfc9bd",
    "#2c7a46",
    "#23698a",
)
DARK = (
    "#16171a",
    "#1e2024",
    "#36383e",
    "#f4f1ea",
    "#a09b91",
    "#b5b1a8",
    "#8d8982",
    "#6a6866",
    "#4a4b50",
    "#7cc78e",
    "#6fb5d6",
)
CLASSES = ("paper", "panel", "line", "l0", "muted", "l1", "l2", "l3", "l4", "clamped", "settled")
FONT = 'ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace'


def write_svg(trace: Trace, path: str | Path, across: int | None = None) -> None:
    """Writes the picture of a trace; see `draw`.

    Raises:
        DGemmaError: the file cannot be written there.
    """
    picture = draw(trace, across).encode()
    write_whole(path, lambda file: file.write(picture))


def draw(trace: Trace, across: int | None = None) -> str:
    """The first canvas of a trace, as an SVG.

    Args:
        trace: the run.
        across: columns of each panel; None takes as many as fit.
    """
    first = trace.canvas_index == trace.canvas_index[0]
    shown = frames(trace)[: int(first.sum())]
    steps = chosen(shown)
    per_row = min(len(steps), 4 if across is not None and across <= 8 else 2)
    width = (WIDTH - 2 * MARGIN - (per_row - 1) * GAP) / per_row
    cells = grid([shown[step] for step in steps], width - 2 * PADDING, across)
    height = cells.height + 3 * HEADING + PADDING
    top = MARGIN + 1.4 * TITLE + 2 * HEADING
    panels = []
    for number, step in enumerate(steps):
        x, y = MARGIN + number % per_row * (width + GAP), top + number // per_row * (height + GAP)
        panel = _panel(shown[step], cells, place(trace, step), width, height)
        panels.append(f'<g transform="translate({x:g} {y:g})">{panel}</g>')
    has_settled = not trace.computed[first].all()
    bottom = top + -(-len(steps) // per_row) * (height + GAP) + LEGEND
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + MARGIN - 4:g}" '
        f'viewBox="0 0 {WIDTH} {bottom + MARGIN - 4:g}" role="img">',
        f"<title>{_escaped(headline(trace, 200))}</title>",
        f"<desc>{_escaped(_description(trace, steps, shown[-1]))}</desc>",
        f"<style>{_style(has_settled)}</style>",
        f'<rect class="paper line" x=".5" y=".5" width="{WIDTH - 1}" height="{bottom + MARGIN - 5:g}" rx="10"/>',
        *_title(trace),
        *panels,
        _legend(bottom, bool(trace.clamped[first].any()), has_settled),
        "</svg>\n",
    ))  # fmt: skip


def _panel(frame: Frame, cells: Grid, heading: str, width: float, height: float) -> str:
    """A step: its number, and its glyphs."""
    shift = (width - cells.width) / 2
    box = f'<rect class="panel line" width="{width:g}" height="{height:g}" rx="8"/>'
    name = f'<text class="muted" x="{PADDING}" y="{1.7 * HEADING:g}" font-size="{HEADING}">{heading}</text>'
    body = "".join(_rows(glyphs(frame, cells.columns), cells))
    return f'{box}{name}<g transform="translate({shift:g} {2.6 * HEADING:g})" font-size="{cells.font:g}" ' + (
        f'text-anchor="middle">{body}</g>'
    )


def _rows(placed: list[Glyph], cells: Grid) -> Iterator[str]:
    """Text elements; every glyph is in the middle of its cells, wherever the reader's font would have put it."""
    for (row, level, clamped, simple), part in groupby(placed, key=_alike):
        run = list(part)
        base = (row + 0.5) * cells.leading + 0.35 * cells.font
        if clamped:
            start, end = run[0].column * cells.pitch, (run[-1].column + run[-1].width) * cells.pitch
            yield f'<path class="rule" d="M{_number(start)} {_number(base + 0.25 * cells.font)}H{_number(end)}"/>'
        for group in [run] if simple else [[glyph] for glyph in run]:
            visible = [glyph for glyph in group if glyph.text != " "]
            if visible:
                x = " ".join(_number((glyph.column + glyph.width / 2) * cells.pitch) for glyph in visible)
                text = _escaped("".join(glyph.text for glyph in visible))
                yield f'<text class="{colour_of(level, clamped)}" x="{x}" y="{_number(base)}">{text}</text>'


def colour_of(level: int, clamped: bool) -> str:
    """Which of CLASSES a glyph has."""
    return "clamped" if clamped else "settled" if level == SETTLED else f"l{level}"


def _alike(glyph: Glyph) -> tuple[int, int, bool, bool]:
    """What glyphs of one text element share; only simple ones may, which no font joins or turns round."""
    simple = len(glyph.text) == glyph.width == 1 and (glyph.text < "\u0590" or "\u2000" <= glyph.text < "\u2600")
    return glyph.row, glyph.level, glyph.clamped, simple


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _title(trace: Trace) -> Iterator[str]:
    """The prompt, and below it the model and the seed."""
    width = (WIDTH - 2 * MARGIN) / ADVANCE
    for kind, words, size, y in (
        ("l0 title", headline(trace, int(width / TITLE)), TITLE, MARGIN + 0.6 * TITLE),
        ("muted", origin(trace, int(width / HEADING)), HEADING, MARGIN + 0.6 * TITLE + 1.8 * HEADING),
    ):
        yield f'<text class="{kind}" x="{MARGIN}" y="{y:g}" font-size="{size}">{_escaped(words)}</text>'


def _legend(y: float, is_steered: bool, has_settled: bool) -> str:
    sample = '<tspan class="{}">{}</tspan>'.format
    shades = ", ".join(sample(f"l{level}", nats) for level, nats in enumerate(UNCERTAIN, 1))
    parts = [sample("l0", "accepted"), f"or not, entropy below {shades} nats", f"{sample('l4', NOISE_CELL * 3)} above"]
    parts += [f"{sample('l2', STOP)} end", *[sample("clamped", "clamped")] * is_steered]
    parts += [sample("settled", "settled")] * has_settled
    return f'<text class="muted" x="{MARGIN}" y="{y:g}" font-size="{LEGEND}">{" · ".join(parts)}</text>'


def _description(trace: Trace, steps: list[int], last: Frame) -> str:
    """The picture in words, for those who cannot see it."""
    numbers = ", ".join(str(trace.step[step]) for step in steps)
    text = one_line("".join(text for text, _, _ in last), 500)
    return f"A canvas of {trace.canvas.shape[2]} tokens at denoising steps {numbers}; in the end it reads: {text}"


def _style(has_settled: bool) -> str:
    """Colours for light and dark, without variables, which some programs that draw SVG do not know."""

    def rules(colours: tuple[str, ...]) -> str:
        named = {name: c for name, c in zip(CLASSES, colours, strict=True) if has_settled or name != "settled"}
        strokes = f".line{{stroke:{named.pop('line')}}}.rule{{stroke:{named['clamped']};stroke-width:2}}"
        return "".join(f".{name}{{fill:{colour}}}" for name, colour in named.items()) + strokes

    return (
        f"text{{font-family:{FONT};font-variant-ligatures:none;white-space:pre}}"
        ".title{font-weight:600}"
        f"{rules(LIGHT)}@media(prefers-color-scheme:dark){{{rules(DARK)}}}"
    )
