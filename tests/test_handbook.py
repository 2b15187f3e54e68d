"""README and docs are what they claim to be: commands run, options are explained, links lead somewhere."""

import argparse
import json
import plistlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from benchmarks import image_tokens, recipes, story
from benchmarks.picture import run
from convert.__main__ import build_parser as converter
from mlx_dgemma.bench.__main__ import build_parser as bench
from mlx_dgemma.chat.__main__ import build_parser as chat
from mlx_dgemma.demo import evaluate, train
from mlx_dgemma.report.__main__ import build_parser as report
from mlx_dgemma.server.__main__ import build_parser as server
from mlx_dgemma.server.serving import DRAIN
from mlx_dgemma.sweep.__main__ import build_parser as sweep
from mlx_dgemma.terminal.arguments import build_parser as generator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
PARSERS = {
    "generate": (generator, "generating.md"),
    "chat": (chat, "chat.md"),
    "server": (server, "server.md"),
    "bench": (bench, "performance.md"),
    "sweep": (sweep, "experiments.md"),
    "convert": (converter, "converting.md"),
    "report": (report, "traces-and-reports.md"),
    "demo.train": (train.build_parser, "embedded-checkpoint.md"),
    "demo.evaluate": (evaluate.build_parser, "embedded-checkpoint.md"),
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Command lines of a page's blocks, with continued lines joined."""
    fenced = [line for kind in ("console", "bash") for block in blocks(kind, text) for line in block.splitlines()]
    lines = [*fenced, *re.findall(r"^    (.*)$", text.replace("\\\n", " "), re.MULTILINE)]
    return _commands_of(part for line in lines for part in re.split(r" \| | && |; do ", line.removeprefix("$ ")))


def _commands_of(lines: Iterable[str]) -> list[str]:
    lines = [re.sub(r"^\w+=\S+ |^until |^LD_PRELOAD=\$\(.*\) ", "", line.strip()) for line in lines]
    return [line for line in lines if re.match(r"(dgemma-\w+|mlx-dgemma|python -m [\w.]+) ", line)]


def taken_apart(command: str) -> tuple[str, list[str]]:
    """Which of PARSERS, or which module; and the arguments."""
    words = shlex.split(command, comments=True)
    module, arguments = (words[2], words[3:]) if words[0] == "python" else (words[0], words[1:])
    name = re.sub(r"^(dgemma-|mlx_dgemma\.)", "", module).replace("mlx-dgemma", "generate")
    return (name if name in PARSERS else module), arguments


def test_the_readme_is_a_door():
    assert README.count("\n") <= 120
    first, second = blocks("bash")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert "pip install" in first and "mlx_dgemma.generate" in first
    assert "pip install" in second and "pytest" in second
    assert [path.name for path in DOCS if f"docs/{path.name})" not in README] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    for block in blocks("python", path.read_text(encoding="utf-8")):
        exec(compile(block, path.name, "exec"), namespace)
    if path.name == "traces-and-reports.md":
        assert "count 18 to 50" in (tmp_path / "run.html").read_text("utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_are_commands(path):
    text = path.read_text(encoding="utf-8")
    for command in commands(text):
        name, arguments = taken_apart(command)
        if name in PARSERS:
            PARSERS[name][0]().parse_args(arguments)  # SystemExit for an unknown option
        else:
            assert find_spec(name) is not None, command
    for command in _commands_of(re.findall(r"`([^`\n]*)`", text)):  # in a sentence a command may be half a command
        name, arguments = taken_apart(command)
        known = (
            [o for action in PARSERS[name][0]()._actions for o in action.option_strings] if name in PARSERS else None
        )
        assert known is not None or find_spec(name) is not None, command
        assert known is None or [a for a in arguments if a.startswith("--") and a not in known] == [], command


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_is_shown_is_what_comes_out(path, tmp_path):
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    for name in ("generate", "chat", "bench", "sweep", "report"):
        (tmp_path / f"dgemma-{name}").write_text(f'#!/bin/sh\nexec {sys.executable} -m mlx_dgemma.{name} "$@"\n')
        (tmp_path / f"dgemma-{name}").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    for block in blocks("console", path.read_text(encoding="utf-8")):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            done = subprocess.run(command, shell=True, text=True, env=environment, capture_output=True, cwd=tmp_path)
            assert (done.stdout, done.returncode) == (shown, 0), command


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path if not name else path.parent / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_settings_can_be_read(path):
    readers = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load, "xml": plistlib.loads}
    for language, read in readers.items():
        for block in blocks(language, path.read_text(encoding="utf-8")):
            assert isinstance(read(block.encode() if language == "xml" else block), dict)


def test_a_server_that_starts_with_the_mac():
    (block,) = blocks("xml", page("clients.md"))
    agent = plistlib.loads(block.encode())
    program, *arguments = agent["ProgramArguments"]
    assert program.endswith("/dgemma-server") and server().parse_args(arguments).api_key_file.startswith("/Users/NAME/")
    assert agent["RunAtLoad"] and agent["KeepAlive"] == {"SuccessfulExit": False} and agent["ExitTimeOut"] > DRAIN
    assert f"{agent['Label']}.plist" in page("clients.md")


@pytest.mark.parametrize("command", [name for name in PARSERS if "." not in name])
def test_every_option_is_on_its_commands_page(command):
    parser, name = PARSERS[command]
    text = page(name)
    actions = [action for action in parser()._actions if action.help != argparse.SUPPRESS]
    options = [[o for o in action.option_strings if o.startswith("--")] for action in actions]
    named = [names for names in options if names and names[0] not in ("--help", "--version", "--quantize", "--output")]
    assert [names for names in named if not any(name in text for name in names)] == []


def test_columns_and_fields_of_a_sweep_are_on_its_page():
    from mlx_dgemma.sweep.grid import FIELDS, Grid
    from mlx_dgemma.sweep.journal import columns

    assert [name for name in [*FIELDS, *columns(Grid({}))] if f"`{name}`" not in page("experiments.md")] == []


def test_the_page_on_samplers_names_what_there_is():
    from dataclasses import fields

    from mlx_dgemma.diffusion.strategies import EarlierStep, Step
    from mlx_dgemma.sweep import plugins

    names = [f.name for kind in (Step, EarlierStep) for f in fields(kind)]
    assert [name for name in [*names, *plugins.FIELDS] if f"`{name}`" not in page("samplers.md")] == []


def test_the_page_on_python_names_what_there_is():
    from dataclasses import fields

    from mlx_dgemma import Engine, Request
    from mlx_dgemma.text.events import GenerationResult

    names = [f.name for kind in (Request, GenerationResult) for f in fields(kind)]
    names += [name for name in vars(Engine) if not name.startswith("_") and callable(getattr(Engine, name))]
    text = page("python.md")
    assert [name for name in names if not re.search(rf"`{name}[`(]|Engine\.{name}\(", text)] == []


def test_tables_are_what_scripts_print(capsys):
    assert story.table(run()) in page("how-it-works.md")
    image_tokens.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * 7 and [row for row in rows if row not in page("images.md").splitlines()] == []
    assert f"{image_tokens.tower_gigabytes():.2f} GB, as it computes in float32" in page("images.md")
    recipes.main()
    figures = re.findall(r"\| (\S+ \| \S+ GB \| \S+ GB \| \S+ GB) \|", capsys.readouterr().out)
    assert len(figures) > 4 and [row for row in figures if row not in page("converting.md")] == []


def test_divergences_name_tests_that_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    names = set(re.findall(r"`(test_\w+)`", (ROOT / "DIVERGENCES.md").read_text()))
    assert names and all(f"def {name}(" in tests for name in names)
