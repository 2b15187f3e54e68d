"""A command's first statement takes signals in hand; what comes before it is Python's, and little."""

import ast
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mlx_dgemma.terminal import signals
from mlx_dgemma.terminal.cli import exit_code
from tests.signals.run import ROOT, heed

FILES = (
    "generate.py", "__main__.py", "roofline.py", "chat/__main__.py", "bench/__main__.py", "report/__main__.py",
    "sweep/__main__.py", "server/__main__.py", "demo/train.py", "demo/evaluate.py", "../convert/__main__.py",
)  # fmt: skip
BEGIN = """
from mlx_dgemma.terminal import signals
if __name__ == "__main__":
    signals.begin()
"""


def statements(path: Path) -> list[str]:
    """Without the docstring and what every file may have."""
    body = [s for s in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(s, ast.Expr)]
    return [text for statement in body if "__future__" not in (text := ast.unparse(statement))]


@pytest.mark.parametrize("file", FILES)
def test_a_command_begins_with_it(file):
    assert statements(ROOT / "mlx_dgemma" / file)[:2] == [ast.unparse(s) for s in ast.parse(BEGIN).body]


def test_these_are_all_commands():
    found = [path for folder in ("mlx_dgemma", "convert") for path in (ROOT / folder).rglob("*.py")]
    found.remove(ROOT / "mlx_dgemma/checkpoint/jinja_worker.py")  # in a session of its own, and silent
    names = {path for path in found if any("__name__" in text and "main()" in text for text in statements(path))}
    assert {(ROOT / "mlx_dgemma" / file).resolve() for file in FILES} == names


def test_installed_commands_begin_with_it():
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    functions = {s.name: s for s in ast.parse((ROOT / "mlx_dgemma/scripts.py").read_text(encoding="utf-8")).body[2:]}
    for entry in scripts.values():
        module, name = entry.split(":")
        assert module == "mlx_dgemma.scripts" and ast.unparse(functions[name].body[0]) == "signals.begin()"


def test_little_is_imported_before():
    """Two packages and a module of ours; of Python's nothing that `python -m` has not imported, but `signal`."""
    code = "import runpy, sys; old = {*sys.modules}; import mlx_dgemma.terminal.signals; print(*{*sys.modules} - old)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours = {"mlx_dgemma", "mlx_dgemma.terminal", "mlx_dgemma.terminal.signals"}
    assert {*told.split()} <= ours | {"signal", "threading", "_weakrefset", "math", "collections.abc"}


def test_another_signal_while_the_command_says_what_happened_changes_nothing(capsys):
    """Two of them at once: the second must not have the last word."""

    def run() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            signals.hold()
            signal.raise_signal(signal.SIGTERM)
        return signals.exit_code()

    assert exit_code(run, "interrupted before anything") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ""


def test_a_signal_before_the_command_is_imported_waits_for_it(monkeypatch):
    """And one while it is dealt with is not raised on top of it; one that a destructor swallowed is."""
    monkeypatch.setattr(signals, "_state", signals._State())
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: None)
    signals.begin()
    signals._receive(signals.signal.SIGTERM, None)
    with signals.heeded(ends_process=False):
        with pytest.raises(KeyboardInterrupt):
            signals.release()
        signals._receive(signals.signal.SIGINT, None)
        signals.check()
        signals._state.raised_at -= 2 * signals.APART
        with pytest.raises(KeyboardInterrupt):
            signals.check()
        with pytest.raises(KeyboardInterrupt):
            signals.close()
        assert signals.exit_code() == 130


def program(folder: Path, work: str, number: int) -> subprocess.CompletedProcess:
    """A command whose work sends itself the signal, run as `python -m` runs it."""
    (folder / "program.py").write_text(f"""
import sys
from mlx_dgemma.terminal import signals
from mlx_dgemma.terminal.cli import exit_code
signals.begin()
def run():
    {work}
    return 0
sys.exit(exit_code(run, "interrupted", ends_process=True))
""")
    return subprocess.run(
        [sys.executable, "-m", "program", str(number)], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=heed,
    )  # fmt: skip


SEND = "import os, sys; os.kill(os.getpid(), int(sys.argv[1]))"


@pytest.mark.parametrize("number", [2, 15])
def test_an_interrupt_that_passed_an_exec_has_its_exit_code(number, tmp_path):
    """Python would end by SIGINT, although it was caught."""
    end = program(tmp_path, f"exec({SEND!r})", number)
    assert (end.returncode, end.stderr) == (128 + number, "interrupted\n")


@pytest.mark.parametrize("number", [2, 15])
def test_an_import_is_not_cut_in_two(number, tmp_path):
    """But what comes behind it is."""
    (tmp_path / "slow.py").write_text(f"{SEND}; import time; time.sleep(0.2); print('imported')")
    end = program(tmp_path, "import slow, time; time.sleep(30); print('not reached')", number)
    assert (end.returncode, end.stdout, end.stderr) == (128 + number, "imported\n", "interrupted\n")
