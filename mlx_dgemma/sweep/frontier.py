"""The quality–steps frontier: which points no other beats, and the plot of all of them."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.sweep.grid import Grid
from mlx_dgemma.sweep.summary import ALL, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".pdf", ".svg")


def check_plot(path: Path) -> None:
    """Raises DGemmaError if a plot could not be written there."""
    if find_spec("matplotlib") is None:
        raise DGemmaError("--plot needs matplotlib; pip install matplotlib (the extra mlx-dgemma[plots])")
    if path.suffix not in FORMATS:
        raise DGemmaError(f"--plot {path}: the name must end in {', '.join(FORMATS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise DGemmaError(f"--plot {path}: {'a folder' if path.is_dir() else 'its folder does not exist'}; name a file")


def frontier(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the (steps, quality) points that no other dominates, by growing steps.

    A point dominates another if it takes no more steps, is no worse, and is better in one of the two.
    """
    kept = [i for i, point in enumerate(points) if not any(_dominates(other, point) for other in points)]
    return sorted(kept, key=lambda i: points[i])


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] <= b[0] and a[1] >= b[1]


def plot(lines: list[Line], grid: Grid, title: str, path: Path) -> None:
    """Writes a panel per task: steps per canvas against exact match with its 95 % interval, the frontier joined."""
    from matplotlib.figure import Figure

    tasks = [task for task in dict.fromkeys(line.task for line in lines) if task != ALL]
    wide = min(len(tasks), 4)
    high = -(-len(tasks) // wide)
    figure = Figure(figsize=(max(7.0, 4.5 * wide), 4.8 * high), layout="constrained")
    panels = figure.subplots(high, wide, squeeze=False).flat
    for panel, task in zip(panels, tasks, strict=False):
        _panel(panel, [line for line in lines if line.task == task], grid)
        panel.set_title(task)
    for panel in list(panels)[len(tasks) :]:
        panel.set_visible(False)
    figure.suptitle(f"{title}\nlabels: {', '.join(grid.varying())}" if grid.varying() else title, fontsize=10)
    figure.savefig(path, dpi=150)


def _panel(axes: "Axes", lines: list[Line], grid: Grid) -> None:
    points = [(line.score.steps_per_canvas, 100 * line.score.exact) for line in lines]
    best = frontier(points)
    for i, (line, (x, y)) in enumerate(zip(lines, points, strict=True)):
        low, high = line.score.interval
        colour = "tab:blue" if i in best else "tab:gray"
        axes.errorbar(x, y, [[y - 100 * low], [100 * high - y]], fmt="o", color=colour, capsize=3, markersize=5)
        _label(axes, grid.label(line.settings), (x, y), colour, above=i in best)
    axes.plot(*zip(*(points[i] for i in best), strict=True), color="tab:blue", linewidth=1, zorder=0)
    axes.set_xlabel("denoising steps per canvas (mean)")
    axes.set_ylabel("exact match, % (95 % interval)")
    axes.grid(alpha=0.3)


def _label(axes: "Axes", text: str, at: tuple[float, float], colour: str, *, above: bool) -> Any:
    offset, side = ((-5, 5), "right") if above else ((5, -12), "left")
    axes.annotate(text, at, offset, textcoords="offset points", ha=side, fontsize=8, color=colour)
