"""Fewer active rows by the roofline, tiles of experts against a count, and what predictions follow from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.roofline import RECIPES
from mlx_dgemma.bench.chips import CHIPS
from mlx_dgemma.bench.predictions import predicted, prediction_table, reference_work, row_counts, rows_table, step_ratio
from mlx_dgemma.bench.roofline import Widths, main, step_stages, tiled_share
from tests.bench.test_roofline import PAGE, PUBLISHED

FOUR = RECIPES["4-bit"]


@given(st.integers(0, 40_000), st.integers(1, 256))
def test_fewer_rows_are_fewer_operations_and_the_same_bytes(prefix, rows):
    for full, own in zip(
        step_stages(PUBLISHED, Widths(), prefix), step_stages(PUBLISHED, Widths(), prefix, rows=rows), strict=True
    ):
        assert own.flops == pytest.approx(full.flops * rows / 256)
        assert own.nbytes <= full.nbytes if own.name == "experts" else own.nbytes == full.nbytes


def test_all_rows_are_a_full_step():
    assert step_stages(PUBLISHED, FOUR, 1024, rows=256) == step_stages(PUBLISHED, FOUR, 1024)


@pytest.mark.parametrize(("picks", "tile"), [(2048, 16), (512, 16), (256, 32), (2048, 32)])
def test_rows_in_tiles_against_drawn_picks(picks, tile):
    drawn = np.random.default_rng(0).multinomial(picks, [1 / 128] * 128, size=400)
    assert tiled_share(128, picks, tile) == pytest.approx((-(-drawn // tile) * tile).sum(1).mean() / picks, rel=0.01)


def test_tiles_of_one_row_are_never_empty():
    assert tiled_share(128, 300, 1) == 1 and tiled_share(1, 20, 16) == 1.6


def test_row_counts_are_fractions_of_any_canvas():
    assert row_counts(256) == [256, 192, 128, 96, 64, 32]
    assert row_counts(64) == [64, 48, 32, 24, 16, 8] and row_counts(1) == [1]


def test_a_saved_row_is_worth_less_and_less():
    for chip in CHIPS:
        for rows in (192, 128, 96, 64, 32):
            bound, tiled = (step_ratio(PUBLISHED, FOUR, 1024, chip, rows, tile) for tile in (1, 16))
            assert rows / 256 <= bound + 1e-9 and bound <= tiled + 0.01 < 1.01


def test_the_references_work():
    found = [256 * reference_work(text) for text in ("code", "chat", "prose")]
    assert found == pytest.approx([14.85, 19.35, 28.85])
    assert predicted(0.5, reference_work("prose")) == pytest.approx(256 / (28.85 * 0.5))
    assert predicted(0.5, 0.1, 2) == pytest.approx(10)


def test_the_command_marks_predictions(capsys):
    assert main(["--work", "1", "0.25"]) == 0
    out = capsys.readouterr().out
    assert "PREDICTIONS, not measured" in out and "prose at 0.25" in out and "active rows | 64 | 48" in out
    with pytest.raises(SystemExit):
        main(["--work", "0"])
    assert "--work must be shares" in capsys.readouterr().err


def test_tables_have_a_row_per_chip():
    for table in (rows_table(PUBLISHED, FOUR, 1024), prediction_table(PUBLISHED, FOUR, 1024, [1, 0.5])):
        assert [line.split(" | ")[0][2:] for line in table.splitlines()[3:]] == [chip.name for chip in CHIPS]
        assert "nan" not in table


def test_the_page_has_the_tables():
    for table in (rows_table(PUBLISHED, FOUR, 1024), prediction_table(PUBLISHED, FOUR, 1024, [1, 0.5, 1 / 3])):
        assert table in PAGE
