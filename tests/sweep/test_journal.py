"""Journals that somebody else wrote to, and things that are no files."""

import json
import os

import pytest

from mlx_dgemma.sweep.__main__ import main
from tests.fuzz import journals, small
from tests.sweep.test_sweep import in_process


@pytest.fixture
def command(tmp_path):
    """Goes on with a finished run, whose files lie in `tmp_path`."""
    table, about = journals.finished()
    (tmp_path / journals.CSV).write_bytes(table)
    (tmp_path / journals.RUN).write_bytes(about)
    return ["--model", small.original(), *journals.OPTIONS, "--output", tmp_path / journals.CSV, "--resume"]


def test_what_a_kill_left_behind_the_last_row_goes(command, tmp_path, capsys):
    path = tmp_path / journals.CSV
    path.write_bytes(journals.finished()[0] + b'1,"roman",7,"ro')
    assert in_process(capsys, *command)[0] == 0
    assert path.read_bytes() == journals.finished()[0]


@pytest.mark.parametrize("column", [6, 7, 8, 9])
@pytest.mark.parametrize("value", ["-1", "nan", "9" * 400, "1e999", "x"])
def test_figures_that_no_run_has(command, tmp_path, capsys, column, value):
    path = tmp_path / journals.CSV
    first, row, *rest = path.read_bytes().split(b"\n")
    cells = row.split(b",")
    cells[column] = value.encode()
    path.write_bytes(b"\n".join([first, b",".join(cells), *rest]))
    before = path.read_bytes()
    code, out, err = in_process(capsys, *command)
    assert (code, out) == (1, "") and "not a row that this run wrote" in err and err.count("\n") == 1
    assert path.read_bytes() == before


def test_a_text_of_no_steps(command, tmp_path, capsys):
    path = tmp_path / journals.CSV
    first, row, *rest = path.read_bytes().split(b"\n")
    cells = row.split(b",")
    for column in (6, 7):
        changed = b",".join([*cells[:column], b"0", *cells[column + 1 :]])
        path.write_bytes(b"\n".join([first, changed, *rest]))
        assert "a text of no steps" in in_process(capsys, *command)[2]


@pytest.mark.parametrize("content", ["[" * 100_000, json.dumps({"identity": 5}), "{}"])
def test_a_description_that_is_none(command, tmp_path, capsys, content):
    (tmp_path / journals.RUN).write_text(content)
    assert "is missing or unreadable" in in_process(capsys, *command)[2]


@pytest.mark.parametrize("option", ["--output", "--data", "--plot"])
@pytest.mark.parametrize("again", [[], ["--resume"], ["--force"]])
def test_pipes_are_neither_waited_for_nor_replaced(tmp_path, capsys, option, again):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    options = journals.OPTIONS if option != "--data" else ()
    code, out, err = in_process(
        capsys, "-m", small.original(), *options, "--output", tmp_path / "o.csv", option, pipe, *again
    )
    assert (code, out) == (1, "") and "rdinary file" in err
    assert pipe.is_fifo() and not (tmp_path / "o.csv").exists()


def test_a_strategy_whose_name_has_no_end(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--set", f"acceptance={'a.' * 3000}b:X"])
    assert stop.value.code == 2 and "cannot be imported" in capsys.readouterr().err
