"""Strategies of one's own in a sweep: named on the command line, found in the current folder, told when wrong."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dgemma import DGemmaError
from mlx_dgemma.diffusion.sampling import EntropyBound, LinearSchedule
from mlx_dgemma.sweep.grid import parse_grid
from mlx_dgemma.sweep.plugins import resolve
from tests.sweep.test_sweep import in_process

RULES = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Below:
    nats: float

    def __call__(self, step):
        return step.entropy <= self.nats


@dataclass(frozen=True)
class Wrong:
    def __call__(self, step):
        return step.entropy


STRICT = Below(0.01)
"""
TASK = ["--tasks", "sudoku with 4 given", "--n", "2"]


@pytest.fixture
def rules(tmp_path, monkeypatch, request):
    """The folder with a module of rules, which is the current one; each test has a module of its own name."""
    name = "rules_" + "".join(filter(str.isalnum, request.node.name))
    (tmp_path / f"{name}.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.slow
def test_a_rule_of_ones_own_against_the_published_one(rules, capsys, tmp_path):
    published = "mlx_dgemma.diffusion.sampling:EntropyBound(0.1)"
    values = [published, f"{rules}:Below(0.3)", f"{rules}:STRICT"]
    code, out, _ = in_process(capsys, "--set", f"acceptance={', '.join(values)}", *TASK, "--output", "o.csv")
    assert code == 0 and all(f"| {value} | sudoku with 4 given | 2 |" in out for value in values)
    plain = in_process(capsys, "--set", "entropy_bound=0.1", *TASK, "--output", "p.csv")
    assert plain[0] == 0
    with open("o.csv", newline="") as own, open("p.csv", newline="") as other:
        rows = [row for row in csv.DictReader(own) if row["acceptance"] == published]
        assert [(r["answer"], r["steps"]) for r in rows] == [(r["answer"], r["steps"]) for r in csv.DictReader(other)]


def test_a_changed_rule_is_another_run(rules, capsys, tmp_path):
    arguments = ["--set", f"acceptance={rules}:Below(0.3)", *TASK, "--output", "o.csv"]
    assert in_process(capsys, *arguments)[0] == 0
    assert in_process(capsys, *arguments, "--resume")[0] == 0
    assert f"{rules}.py" in json.loads((tmp_path / "o.csv.run.json").read_text())["identity"]
    (tmp_path / f"{rules}.py").write_text(RULES + "\n# changed\n")
    code, _, err = in_process(capsys, *arguments, "--resume")
    assert code == 1 and "belongs to another run" in err and f"{rules}.py is" in err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Rule(0.2)", "is not of the form my_module:Rule(0.2)"),
        ("no_such_module_at_all:Rule()", "module 'no_such_module_at_all' cannot be imported (No module named"),
        (":Rule()", "module '' cannot be imported"),
        ("{rules}:Absent()", "has no Absent"),
        ("{rules}:Below", "cannot be made: Below.__init__() missing 1 required positional argument"),
        ("{rules}:STRICT(1)", "cannot be made"),
        ("{rules}:Below(open('x'))", "with literal arguments"),
        ("{rules}:Below(*[1])", "with literal arguments"),
        ("{rules}:Below(**{'nats': 1})", "with literal arguments"),
        ("{rules}:(lambda step: step)", "with literal arguments"),
        ("{rules}:RULES", "has no RULES"),
    ],
)
def test_what_names_no_strategy_is_one_line_and_exit_2(rules, capsys, text, complaint):
    code, out, err = in_process(capsys, "--set", f"acceptance={text.replace('{rules}', rules)}", *TASK)
    assert (code, out) == (2, "") and err.startswith("error: --set acceptance: ") and err.count("\n") == 1
    assert complaint in err


def test_a_rule_that_answers_wrongly_is_one_line(rules, capsys):
    code, _, err = in_process(capsys, "--set", f"acceptance={rules}:Wrong()", *TASK)
    assert code == 1 and "acceptance Wrong() gave float32 (1, 64); bool (1, 64) is needed" in err


def test_a_module_with_an_error_in_it_is_one_line(rules, capsys, tmp_path):
    (tmp_path / f"{rules}.py").write_text("def (\n")
    code, _, err = in_process(capsys, "--set", f"acceptance={rules}:Below(1)", *TASK)
    assert code == 2 and err.count("\n") == 1 and "cannot be imported" in err


def test_a_text_becomes_its_object():
    assert resolve("mlx_dgemma.diffusion.sampling:EntropyBound(0.2)") == EntropyBound(0.2)
    assert resolve("mlx_dgemma.diffusion.sampling: LinearSchedule(t_max=1, t_min=0.5)") == LinearSchedule(0.5, 1)


def test_commas_inside_brackets_and_quotes_part_nothing():
    base = "mlx_dgemma.diffusion.sampling:"
    grid = parse_grid([f"temperature_schedule={base}LinearSchedule(0.1, 0.2), {base}LinearSchedule(0.1, 0.3)"])
    assert [point["temperature_schedule"][-10:] for point in grid.points()] == ["(0.1, 0.2)", "(0.1, 0.3)"]


@given(st.text(max_size=30))
def test_any_other_text_is_one_line(text):
    complaint = ""
    try:
        parse_grid([f"stopping={text}"])
    except DGemmaError as error:
        complaint = str(error)
    assert len(complaint.splitlines()) == 1
