"""The commands and examples of README and docs are what they claim to be."""

import argparse
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_two_set_up_commands_of_one_line_each():
    first, second = blocks("bash")
    assert first.count("\n") == second.count("\n") == 1
    assert "pip install" in first and "mlx_dgemma.generate" in first
    assert "pip install" in second and "pytest" in second


def test_python_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["logits"].shape == (1, 64, 100)
    assert "one thousand eight hundred forty-two" in capsys.readouterr().out
    assert (tmp_path / "run.npz").stat().st_size and "count 18 to 50" in (tmp_path / "run.html").read_text("utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_python_examples_of_a_page_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    for block in blocks("python", path.read_text(encoding="utf-8")):
        exec(compile(block, path.name, "exec"), namespace)


def test_the_page_on_samplers_names_what_there_is():
    from dataclasses import fields

    from mlx_dgemma.diffusion.strategies import EarlierStep, Step
    from mlx_dgemma.sweep import plugins

    page = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
    names = [f.name for kind in (Step, EarlierStep) for f in fields(kind)]
    assert [name for name in [*names, *plugins.FIELDS] if f"`{name}`" not in page] == []


def test_every_option_is_in_the_readme():
    from convert.__main__ import build_parser as converter
    from mlx_dgemma.bench.__main__ import build_parser as bench
    from mlx_dgemma.report.__main__ import build_parser as report
    from mlx_dgemma.sweep.__main__ import build_parser as sweep
    from mlx_dgemma.terminal.arguments import build_parser as generator

    for parser in (bench(), converter(), generator(), report(), sweep()):
        actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        options = [[o for o in action.option_strings if o.startswith("--")] for action in actions]
        named = [names for names in options if names and names[0] not in ("--help", "--quantize", "--output")]
        assert [names for names in named if not any(name in README for name in names)] == []


def test_columns_and_fields_of_a_sweep_are_in_the_readme():
    from mlx_dgemma.sweep.grid import FIELDS, Grid
    from mlx_dgemma.sweep.journal import columns

    section = README.split("## Experiments")[1].split("\n## ")[0]
    assert [name for name in [*FIELDS, *columns(Grid({}))] if f"`{name}`" not in section] == []


def test_divergences_name_tests_that_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    names = set(re.findall(r"`(test_\w+)`", (ROOT / "DIVERGENCES.md").read_text()))
    assert names and all(f"def {name}(" in tests for name in names)
