"""Two points of a grid that answered the same questions with the same noise: what differs, and how sure that is.

McNemar's exact test counts the questions that only one of the two got right. The interval of the difference is
Newcombe's hybrid score interval for paired shares (Statistics in Medicine 17, 1998, p. 2635, method 10); a point is no
worse than the baseline by more than a margin if the interval's lower end, one-sided at 5 %, says so. The interval of
the ratio of work is a paired bootstrap over questions, seeded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_dgemma.sweep.grid import Grid, Settings
from mlx_dgemma.sweep.summary import ALL, wilson
from mlx_dgemma.sweep.trials import Outcome, Row

Z90 = 1.6448536269514722  # the normal distribution's 95 % quantile: two-sided 90 %, one-sided 95 %
RESAMPLES = 2000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A point against the baseline, over the questions that both have answered.

    Attributes:
        settings: of the point.
        task: or ALL.
        n: pairs.
        lost, won: questions that only the baseline, only this point got right.
        p: of McNemar's exact test, two-sided.
        difference: of exact match, this point's less the baseline's, with its 90 % interval: (value, low, high).
        work: this point's over the baseline's, with its 95 % interval: (value, low, high).
    """

    settings: Settings
    task: str
    n: int
    lost: int
    won: int
    p: float
    difference: tuple[float, float, float]
    work: tuple[float, float, float]

    def is_no_worse(self, margin: float) -> bool:
        """Whether exact match is not lower by `margin` (a share) or more, at 5 % one-sided."""
        return self.difference[1] > -margin


def compare(rows: list[Row], grid: Grid) -> list[Comparison]:
    """Every point against the first one: task by task, and over all of them if there are several."""
    base, *others = grid.points()
    tasks = list(dict.fromkeys(row.outcome.task for row in rows))
    found = []
    for point in others:
        for task in [*tasks, ALL] if len(tasks) > 1 else tasks:
            ours, theirs = (_answers(rows, settings, task) for settings in (point, base))
            pairs = [(theirs[key], ours[key]) for key in theirs if key in ours]
            if pairs:
                found.append(_compared(point, task, pairs))
    return found


def _answers(rows: list[Row], settings: Settings, task: str) -> dict[tuple[str, int], Outcome]:
    chosen = (r.outcome for r in rows if r.settings == settings and task in (ALL, r.outcome.task))
    return {(outcome.task, outcome.index): outcome for outcome in chosen}


def _compared(settings: Settings, task: str, pairs: Sequence[tuple[Outcome, Outcome]]) -> Comparison:
    lost = sum(base.correct and not own.correct for base, own in pairs)
    won = sum(own.correct and not base.correct for base, own in pairs)
    both = sum(own.correct and base.correct for base, own in pairs)
    difference = newcombe(both, won, lost, len(pairs), Z90)
    work = ratio_of_sums([o.full_steps for _, o in pairs], [b.full_steps for b, _ in pairs])
    return Comparison(settings, task, len(pairs), lost, won, mcnemar(lost, won), difference, work)


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p that so many discordant pairs, or fewer, fall on the rarer side by chance: binomial, exact."""
    n, k = lost + won, min(lost, won)
    return min(1.0, float(2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


def newcombe(both: int, won: int, lost: int, n: int, z: float) -> tuple[float, float, float]:
    """Difference of two paired shares, (both + won) / n less (both + lost) / n, with its interval."""
    neither = n - both - won - lost
    own, base = (both + won) / n, (both + lost) / n
    (low, high), (low_base, high_base) = wilson(both + won, n, z), wilson(both + lost, n, z)
    product = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    determinant = float(both * neither - won * lost)
    if determinant > 0:
        determinant = max(0.0, determinant - n / 2)  # the method's correction for continuity
    phi = determinant / math.sqrt(product) if product else 0.0
    down = _combined(own - low, high_base - base, phi)
    up = _combined(base - low_base, high - own, phi)
    return own - base, max(-1.0, own - base - down), min(1.0, own - base + up)


def _combined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def ratio_of_sums(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Σ ours / Σ theirs of paired values, with a 95 % interval by the percentiles of a paired bootstrap."""
    import numpy as np

    pairs = np.array([ours, theirs])
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(ours), np.full(len(ours), 1 / len(ours)), RESAMPLES)  # how often each pair is drawn
    sums = counts @ pairs.T  # (RESAMPLES, 2)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return float(pairs[0].sum() / pairs[1].sum()), float(low), float(high)


def comparison_table(found: list[Comparison], fields: list[str], margin: float) -> tuple[list[str], list[list[str]]]:
    """Header and cells; `margin` is a share."""
    header = [*fields, "task", "pairs", "lost, won", "p (McNemar)", "difference, points", "90 % interval"]
    header += [f"no worse than {100 * margin:g} points", "work", "95 % interval"]
    return header, [[*(str(c.settings[f]) for f in fields), *_cells(c, margin)] for c in found]


def _cells(c: Comparison, margin: float) -> list[str]:
    (difference, low, high), (ratio, least, most) = c.difference, c.work
    return [
        c.task,
        str(c.n),
        f"{c.lost}, {c.won}",
        f"{c.p:.3g}",
        f"{100 * difference:+.1f}",
        f"{100 * low:+.1f} … {100 * high:+.1f}",
        "yes" if c.is_no_worse(margin) else "not shown",
        f"{ratio:.3f} ×",
        f"{least:.3f} … {most:.3f}",
    ]
