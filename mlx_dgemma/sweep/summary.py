"""From outcomes to figures: exact match with its confidence interval, steps, tokens, seconds; and the table of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from mlx_dgemma.sweep.grid import Grid, Settings
from mlx_dgemma.sweep.trials import Outcome, Row

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
ALL = "all"


@dataclass(frozen=True)
class Score:
    """What some generations came to.

    Attributes:
        n, correct: how many there were, and how many had the right answer.
        steps_per_canvas: denoising steps per canvas, mean over canvases.
        tokens_per_forward: text tokens per denoising step.
        work: full denoising steps, in operations, per text token.
        seconds: of a generation, median.
    """

    n: int
    correct: int
    steps_per_canvas: float
    tokens_per_forward: float
    work: float
    seconds: float

    @property
    def exact(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of `exact`."""
        return wilson(self.correct, self.n)


def score(outcomes: Iterable[Outcome]) -> Score:
    """Figures of at least one outcome."""
    outcomes = list(outcomes)
    steps, canvases = sum(o.steps for o in outcomes), sum(o.canvases for o in outcomes)
    return Score(
        len(outcomes),
        sum(o.correct for o in outcomes),
        steps / canvases,
        sum(o.tokens for o in outcomes) / steps,
        sum(o.full_steps for o in outcomes) / max(1, sum(o.tokens for o in outcomes)),
        median(o.seconds for o in outcomes),
    )


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share: honest for few samples and for shares near 0 and 1."""
    share = correct / n
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding must not leave the share outside


@dataclass(frozen=True)
class Line:
    """The figures of one task at one point of the grid; of all tasks together if `task` is ALL."""

    settings: Settings
    task: str
    score: Score


def summarise(rows: list[Row], grid: Grid) -> list[Line]:
    """Point by point: a line per task, and one for all of them if there are several. Without rows, no line."""
    tasks = list(dict.fromkeys(row.outcome.task for row in rows))
    lines = []
    for point in grid.points():
        for task in [*tasks, ALL] if len(tasks) > 1 else tasks:
            chosen = [r.outcome for r in rows if r.settings == point and task in (ALL, r.outcome.task)]
            if chosen:
                lines.append(Line(point, task, score(chosen)))
    return lines


def table(lines: list[Line], fields: list[str]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, with a column for each of these settings."""
    header = [*fields, "task", "n", "exact match", "95 % interval", "steps per canvas", "tokens per forward", "work"]
    return [*header, "seconds (median)"], [[*(str(line.settings[f]) for f in fields), *_cells(line)] for line in lines]


def _cells(line: Line) -> list[str]:
    got = line.score
    low, high = got.interval
    return [
        line.task,
        str(got.n),
        f"{100 * got.exact:.1f} %",
        f"{100 * low:.1f} – {100 * high:.1f}",
        f"{got.steps_per_canvas:.2f}",
        f"{got.tokens_per_forward:.2f}",
        f"{got.work:.4f}",
        f"{got.seconds:.2f}",
    ]


def markdown(header: list[str], cells: list[list[str]]) -> str:
    """A Markdown table."""
    ruled = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in ruled)
