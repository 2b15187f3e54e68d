"""The quality–steps frontier: which points no other beats, and the plot of all of them."""

from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import check_writable, write_whole
from mlx_dgemma.sweep.grid import Grid
from mlx_dgemma.sweep.summary import ALL, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

FORMATS = (".png", ".pdf", ".svg")
_COSTS = {  # what exact match is plotted against
    "steps_per_canvas": "denoising steps per canvas (mean)", "work": "work: full denoising steps per token",
}  # fmt: skip
_MANY = 16  # points, from which only those of the frontier have labels
_DISTANCES = (5, 12, 20, 30, 42, 56, 72)  # of a label from its point, in typographic points
_DIRECTIONS = ((-1, 1), (1, -1), (-1, -1), (1, 1), (-1, 0), (1, 0), (0, 1), (0, -1))
_ALIGNMENT = {-1: "right", 0: "center", 1: "left"}  # of a label on that side


def check_plot(path: Path) -> None:
    """Raises DGemmaError if a plot could not be written there."""
    if find_spec("matplotlib") is None:
        raise DGemmaError("--plot needs matplotlib; pip install matplotlib (the extra mlx-dgemma[plots])")
    if path.suffix not in FORMATS:
        raise DGemmaError(f"--plot {path}: the name must end in {', '.join(FORMATS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise DGemmaError(f"--plot {path}: {'a folder' if path.is_dir() else 'its folder does not exist'}; name a file")
    check_writable(path)


def frontier(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the (steps, quality) points that no other dominates, by growing steps.

    A point dominates another if it takes no more steps, is no worse, and is better in one of the two.
    """
    kept = [i for i, point in enumerate(points) if not any(_dominates(other, point) for other in points)]
    return sorted(kept, key=lambda i: points[i])


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] <= b[0] and a[1] >= b[1]


def plot(lines: list[Line], grid: Grid, title: str, path: Path) -> None:
    """Writes two panels per task: exact match with its 95 % interval against steps and against work, frontiers joined.

    Work is what a step computed, so that steps which leave something out count for less.
    """
    from matplotlib.figure import Figure

    tasks = [task for task in dict.fromkeys(line.task for line in lines) if task != ALL]
    wanted = [(task, cost) for task in tasks for cost in _COSTS]
    wide = min(len(wanted), 4)
    high = -(-len(wanted) // wide)
    figure = Figure(figsize=(max(7.0, 4.5 * wide), 4.8 * high), dpi=150, layout="constrained")
    panels = list(figure.subplots(high, wide, squeeze=False).flat)
    labels = f"\nlabels: {', '.join(grid.varying())}" if grid.varying() else ""
    figure.suptitle(title + labels, fontsize=10)
    shown = [([line for line in lines if line.task == task], cost) for task, cost in wanted]
    for panel, (chosen, cost) in zip(panels, shown, strict=False):
        _draw(panel, chosen, cost)
    for panel in panels[len(wanted) :]:
        panel.set_visible(False)
    figure.draw_without_rendering()  # settles where everything is, so that labels can keep clear of it
    figure.set_layout_engine("none")
    for panel, (chosen, cost) in zip(panels, shown, strict=False):
        _label(panel, chosen, grid, cost)
    write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


def _points(lines: list[Line], cost: str) -> tuple[list[tuple[float, float]], list[int]]:
    points = [(float(vars(line.score)[cost]), 100 * line.score.exact) for line in lines]
    return points, frontier(points)


def _draw(axes: "Axes", lines: list[Line], cost: str) -> None:
    points, best = _points(lines, cost)
    for i, (line, (x, y)) in enumerate(zip(lines, points, strict=True)):
        low, high = line.score.interval
        axes.errorbar(
            x, y, [[y - 100 * low], [100 * high - y]], fmt=_marker(line), color=_colour(i in best), capsize=3, ms=5
        )
    axes.plot(*zip(*(points[i] for i in best), strict=True), color=_colour(True), linewidth=1, zorder=0)
    axes.set_title(lines[0].task)
    axes.set_xlabel(_COSTS[cost])
    axes.set_ylabel("exact match, % (95 % interval)")
    axes.margins(0.12)
    axes.grid(alpha=0.3)


def _label(axes: "Axes", lines: list[Line], grid: Grid, cost: str) -> None:
    """Writes each point's settings at the nearest place that is free of points, bars and other labels."""
    from matplotlib.transforms import Bbox

    points, best = _points(lines, cost)
    taken = []
    for line, (x, y) in zip(lines, points, strict=True):
        low, high = axes.transData.transform([(x, 100 * bound) for bound in line.score.interval])
        marker = axes.transData.transform((x, y))
        taken += [Bbox([marker - 7, marker + 7]), Bbox([low - 2, high + 2])]
    texts: dict[tuple[float, float], list[str]] = {}  # points may coincide
    for line, point in zip(lines, points, strict=True):
        texts.setdefault(point, []).append(grid.label(line.settings))
    of_best = {points[i] for i in best}
    if len(texts) >= _MANY:
        texts = {point: texts[point] for point in texts if point in of_best}
    for point in sorted(texts, key=lambda point: (point not in of_best, point)):
        taken.append(_place(axes, "\n".join(texts[point]), point, _colour(point in of_best), taken))


def _place(axes: "Axes", text: str, point: tuple[float, float], colour: str, taken: list["Bbox"]) -> "Bbox":
    for distance, (right, up) in product(_DISTANCES, _DIRECTIONS):
        label = axes.annotate(
            text,
            point,
            (right * distance, up * distance),
            textcoords="offset points",
            ha=_ALIGNMENT[right],
            va=("top", "center", "bottom")[up + 1],
            fontsize=8,
            color=colour,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
        )
        place = label.get_window_extent()
        inside = axes.bbox.contains(place.x0, place.y0) and axes.bbox.contains(place.x1, place.y1)
        if inside and not any(place.overlaps(other) for other in taken):
            break
        if (distance, (right, up)) != (_DISTANCES[-1], _DIRECTIONS[-1]):  # in a crowd, the last place it is
            label.remove()
    if distance > _DISTANCES[0]:
        line = {"arrowstyle": "-", "color": "silver", "lw": 0.7}
        axes.annotate("", point, (right * distance, up * distance), textcoords="offset points", arrowprops=line)
    return place


def _marker(line: Line) -> str:
    """Points that leave something out are triangles."""
    return "^" if line.settings.get("fast") or line.settings.get("settling") else "o"


def _colour(is_best: bool) -> str:
    return "tab:blue" if is_best else "tab:gray"
