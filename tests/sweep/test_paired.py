"""Paired comparisons: the exact test, the interval's coverage, the margin, the ratio of work, the table."""

import random

import pytest

from mlx_dgemma.sweep.grid import Grid
from mlx_dgemma.sweep.paired import Z90, compare, comparison_table, mcnemar, newcombe, ratio_of_sums
from mlx_dgemma.sweep.trials import Outcome, Row


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [(0, 0, 1.0), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (5, 5, 1.0), (0, 6, 2 / 64), (0, 2000, 0.0)],
)
def test_mcnemar_is_the_binomial_of_the_discordant_pairs(lost, won, p):
    assert mcnemar(lost, won) == pytest.approx(p)


def test_the_interval_is_that_of_the_papers_example():
    """Newcombe's table 36, 12, 2, 0: 0.20, from 0.0569 to 0.3404 by method 10."""
    assert newcombe(both=36, won=12, lost=2, n=50, z=1.959963984540054) == pytest.approx(
        (0.2, 0.0569, 0.3404), abs=5e-5
    )


def test_the_interval_covers_the_difference_as_often_as_it_says():
    rng, inside = random.Random(0), 0
    shares = (0.8, 0.04, 0.08)  # both, won, lost
    for _ in range(600):
        drawn = rng.choices(("both", "won", "lost", "neither"), [*shares, 1 - sum(shares)], k=150)
        value, low, high = newcombe(*(drawn.count(kind) for kind in ("both", "won", "lost")), 150, Z90)
        assert low <= value <= high
        inside += low <= 0.04 - 0.08 <= high
    assert 0.87 < inside / 600 < 0.96


def test_more_pairs_make_a_narrower_interval_and_no_difference_has_one_too():
    few, many = (newcombe(9 * k, 0, 0, 10 * k, Z90) for k in (1, 100))
    assert few[0] == many[0] == 0 and few[2] - few[1] > 3 * (many[2] - many[1]) > 0


def test_the_ratio_of_work_is_of_sums_and_its_interval_is_the_same_again():
    ours, theirs = [1.0, 2.0, 3.0, 1.0], [2.0, 4.0, 3.0, 3.0]
    ratio, low, high = ratio_of_sums(ours, theirs)
    assert ratio == pytest.approx(7 / 12) and low < ratio < high
    assert ratio_of_sums(ours, theirs) == (ratio, low, high)
    assert ratio_of_sums([1.0] * 5, [2.0] * 5) == (0.5, 0.5, 0.5)


def rows(n: int, lost: int, won: int) -> list[Row]:
    """Two points: of `n` questions the second one gets some wrong and others right that the first had not."""
    made = []
    for i in range(n):
        right = {False: i >= won, True: not won <= i < won + lost}
        for fast in (False, True):
            outcome = Outcome("sudoku", i, f"sudoku {i}", "", right[fast], 4, 1, 16, 0.1, 0.25 / (1 + fast))
            made.append(Row({"fast": fast}, outcome))
    return made


def test_points_are_compared_with_the_first_one_question_by_question():
    grid = Grid({"fast": [False, True]})
    [found] = compare(rows(400, lost=3, won=2), grid)
    assert (found.n, found.lost, found.won, found.settings) == (400, 3, 2, {"fast": True})
    assert found.difference[0] == pytest.approx(-1 / 400) and found.work == (0.5, 0.5, 0.5)
    assert found.is_no_worse(0.02) and not found.is_no_worse(0.005)
    header, [cells] = comparison_table([found], ["fast"], 0.02)
    assert header[:2] == ["fast", "task"] and "no worse than 2 points" in header
    assert cells[:4] == ["True", "sudoku", "400", "3, 2"] and "yes" in cells and "0.500 ×" in cells
    assert not compare(rows(40, lost=3, won=0), grid)[0].is_no_worse(0.02)  # too few to say


def test_only_questions_that_both_have_answered_count():
    got = rows(10, 0, 0)[:-1]  # interrupted before the last one's second answer
    assert compare(got, Grid({"fast": [False, True]}))[0].n == 9
    assert compare(got[:1], Grid({"fast": [False, True]})) == []
