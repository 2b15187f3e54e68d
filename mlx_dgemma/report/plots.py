"""A trace as PNG: a heat map by step and position, and curves by step. Needs matplotlib (the `plots` extra)."""

import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import write_whole
from mlx_dgemma.report.layout import headline, origin
from mlx_dgemma.report.texts import SCALE, has_settled
from mlx_dgemma.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAT = ["#fbfaf7", "#f7e3ae", "#f0a55c", "#d4524c", "#74255a"]  # the page's, on paper
REJECTED, ACCEPTED, CLAMPED, SETTLED = "#e7e2d8", "#23698a", "#2c7a46", "#a9cbdb"
INK, MUTED = "#24211c", "#696359"
DPI = 150


def check_matplotlib() -> None:
    """Raises a DGemmaError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise DGemmaError("--png needs matplotlib, which is not installed: pip install 'mlx-dgemma[plots]'")


def write_plots(trace: Trace, prefix: str | Path) -> list[Path]:
    """Writes `prefix`-heatmap.png (with -2, -3 … for more samples) and `prefix`-curves.png; returns their paths.

    Raises:
        DGemmaError: no matplotlib, or a file cannot be written there.
    """
    check_matplotlib()
    rows = range(trace.canvas.shape[1])
    figures = zip(names(trace, prefix), [*(heat_map(trace, row) for row in rows), curves(trace)], strict=True)
    with warnings.catch_warnings():  # a prompt may have characters that the font lacks; they are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, figure in figures:
            write_whole(name, partial(figure.savefig, dpi=DPI, format="png"))
    return names(trace, prefix)


def names(trace: Trace, prefix: str | Path) -> list[Path]:
    """The files that `write_plots` writes."""
    maps = [f"{prefix}-heatmap{f'-{row + 1}' if row else ''}.png" for row in range(trace.canvas.shape[1])]
    return [Path(name) for name in (*maps, f"{prefix}-curves.png")]


def heat_map(trace: Trace, row: int = 0) -> "Figure":
    """Entropy and acceptance of one sample, step across and position down."""
    from matplotlib.colors import FuncNorm, LinearSegmentedColormap, ListedColormap
    from matplotlib.patches import Patch

    entropy = trace.entropy[:, row].T  # (C, S)
    settled = trace.accepted[:, row] & ~trace.computed
    state = np.where(trace.clamped[:, row], 2, np.where(settled, 3, trace.accepted[:, row])).T
    figure, axes = _figure(trace, 2, (9, 8))
    extent = (0.5, len(trace.step) + 0.5, entropy.shape[0] - 0.5, -0.5)
    colours = LinearSegmentedColormap.from_list("heat", HEAT).with_extremes(bad="#808080")
    places = np.linspace(0, 1, len(SCALE))
    scale = partial(np.interp, xp=SCALE, fp=places), partial(np.interp, xp=places, fp=SCALE)
    norm = FuncNorm(scale, 0, SCALE[-1], clip=True)
    image = axes[0].imshow(entropy, colours, norm, aspect="auto", interpolation="nearest", extent=extent)
    bar = figure.colorbar(image, ax=axes[0], label="entropy, nats", pad=0.015, ticks=SCALE)
    bar.ax.set_yticklabels([*(f"{nats:g}" for nats in SCALE[:-1]), f"≥ {SCALE[-1]:g}"])
    states = ListedColormap([REJECTED, ACCEPTED, CLAMPED, SETTLED])
    axes[1].imshow(state, states, vmin=-0.5, vmax=3.5, aspect="auto", interpolation="nearest", extent=extent)
    marks = [Patch(color=ACCEPTED, label="accepted"), Patch(facecolor=REJECTED, edgecolor=MUTED, label="not accepted")]
    marks += [Patch(color=CLAMPED, label="clamped")] * bool(trace.clamped.any())
    marks += [Patch(color=SETTLED, label="settled")] * has_settled(trace)
    axes[1].legend(handles=marks, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, borderaxespad=0.2)
    for axis, name in zip(axes, ("Entropy", "Acceptance"), strict=True):
        axis.set_title(name, loc="left", fontsize=11)
        axis.set_ylabel("position")
    _step_axis(trace, axes)
    return figure


def curves(trace: Trace) -> "Figure":
    """Accepted positions, mean entropy (log scale) and temperature by step; computed ones if some were left out."""
    steps = np.arange(1, len(trace.step) + 1)
    threshold = trace.settings.get("confidence_threshold")  # none beside a stopping rule of one's own
    panels = [
        ("accepted positions", trace.accepted_count),
        ("mean entropy, nats", np.where(trace.mean_entropy > 0, trace.mean_entropy, np.nan)),
        ("temperature", trace.temperature),
    ]
    if has_settled(trace):
        panels.append(("computed positions", trace.rows))
    figure, axes = _figure(trace, len(panels), (9, 1 + 2 * len(panels)))
    for axis, (name, values) in zip(axes, panels, strict=True):
        for index in np.unique(trace.canvas_index):
            part = trace.canvas_index == index
            axis.plot(steps[part], values[part], color=INK, linewidth=1.4, marker="o", markersize=2.5)
        axis.set_ylabel(name)
        axis.grid(axis="y", color="#dcd7cc", linewidth=0.7)
    for axis in axes[0::3]:  # counts of positions
        axis.set_ylim(0, trace.accepted[0].size * 1.04)
    axes[1].set_yscale("log")
    if threshold is not None:
        label = f"confidence threshold {threshold} nats"
        axes[1].axhline(threshold, color=MUTED, linestyle="--", linewidth=1, label=label)
        axes[1].legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    _step_axis(trace, axes)
    return figure


def _figure(trace: Trace, panels: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure with panels above each other, and a caption: prompt, model and seed."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))  # inches
    caption = f"{headline(trace, 80)} · {origin(trace, 60)}"
    figure.suptitle(caption, x=0.012, ha="left", fontsize=8, color=MUTED, parse_math=False)
    return figure, list(figure.subplots(panels, 1, sharex=True))


def _step_axis(trace: Trace, axes: "list[Axes]") -> None:
    """Whole steps below the last panel, a line where a canvas begins."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        for boundary in np.flatnonzero(np.diff(trace.canvas_index)) + 1.5:
            axis.axvline(boundary, color=HEAT[0], linewidth=3)
            axis.axvline(boundary, color=MUTED, linewidth=0.9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0.5, len(trace.step) + 0.5)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("denoising step" + (", all canvases" if trace.canvas_index[-1] else ""))
