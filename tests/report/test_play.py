"""A trace played on a terminal: the pictures of --watch, the text of generate, nothing that a terminal would obey."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlx_dgemma.generate import main as generate
from mlx_dgemma.report.__main__ import main
from mlx_dgemma.report.play import LEAST, play
from mlx_dgemma.terminal.watch import drawable
from mlx_dgemma.trace.trace import Trace, load_trace
from tests.report.runs import hostile, recorded
from tests.screen import ROOT, Player, Terminal, terminal_on_stderr

NO_TERMINAL = "--play needs a terminal on stderr; writing the text only\n"
COUNT = ["--prompt", "count 18 to 50", "--t-max", "1.6", "--t-min", "1.5", "--confidence-threshold", "1e-9"]
COUNT += ["--max-denoising-steps", "4", "--entropy-bound", "1e-5"]  # two canvases, several steps each


@pytest.fixture(scope="module")
def trace() -> Trace:
    return recorded()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("play") / "run.npz"
    assert generate([*COUNT, "--quiet", "--trace", str(path)]) == 0
    return path


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """How long the player would have shown each step, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def played(monkeypatch, trace: Trace, speed: float | None = None) -> str:
    """What goes to a terminal on stderr."""
    with terminal_on_stderr(monkeypatch) as pieces:
        play(trace, speed)
    return b"".join(pieces).decode()


def test_a_step_is_shown_long_enough_to_be_seen(trace, monkeypatch, naps):
    seconds = np.linspace(0.001, 0.9, len(trace.step))
    timed = dataclasses.replace(trace, seconds=seconds)
    played(monkeypatch, timed)
    np.testing.assert_allclose(naps, np.maximum(seconds, LEAST))
    naps.clear()
    played(monkeypatch, timed, 4)
    np.testing.assert_allclose(naps, seconds / 4)
    assert LEAST == 0.3


def test_times_that_are_none(trace, monkeypatch, naps):
    odd = np.array([np.nan, np.inf, -1.0, *trace.seconds[3:]])
    played(monkeypatch, dataclasses.replace(trace, seconds=odd), 0.5)
    assert naps[0] == naps[2] == 0 and naps[1] == 3600


def test_without_a_terminal_a_line_says_so(saved, capsys, naps):
    assert main([str(saved), "--play"]) == 0
    out, err = capsys.readouterr()
    assert out == load_trace(saved).text + "\n" and err == NO_TERMINAL and naps == []
    assert os.listdir(saved.parent) == ["run.npz"]  # no page


def test_a_page_only_if_it_is_asked_for(saved, tmp_path, capsys, naps):
    page = tmp_path / "page.html"
    assert main([str(saved), "--play", "-o", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n{load_trace(saved).text}\n"
    assert os.listdir(tmp_path) == ["page.html"]


def test_no_model_and_no_tokenizer_are_loaded(saved):
    code = "import sys; from mlx_dgemma.report.__main__ import main\n"
    code += f"main([{str(saved)!r}, '--play'])\n"
    code += "assert not {'sentencepiece', 'tokenizers', 'huggingface_hub'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_nothing_reaches_a_terminal_that_it_would_obey(trace, monkeypatch, naps, capsys):
    evil = hostile(trace)
    shown = played(monkeypatch, evil)
    assert "␛[2J␛]0;x␇" in shown and not set("\x07\x00\x7f\x9b\u202e\u2066\u200f\u200d\ufeff") & set(shown)
    assert "\x1b[2J" not in shown and "\x1b]" not in shown
    assert capsys.readouterr().out == evil.text + "\n"  # no terminal: what was recorded, byte for byte
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    played(monkeypatch, evil)
    assert capsys.readouterr().out == drawable(evil.text) + "\n"


def test_ids_are_played_where_the_trace_has_no_texts(trace, monkeypatch, naps):
    first = dataclasses.replace(trace, pieces={}, accepted=np.ones_like(trace.accepted))
    assert " ".join(map(str, trace.draft[0, 0, :5])) in played(monkeypatch, first)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--speed", "2"], "--speed needs --play"), (["--play", "--speed", "0"], "--speed must be above 0, got 0"),
     (["--play", "--speed", "nan"], "--speed must be above 0, got nan")],
)  # fmt: skip
def test_bad_usage_is_one_line(saved, capsys, arguments, complaint):
    with pytest.raises(SystemExit) as stop:
        main([str(saved), *arguments])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and complaint in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_pictures_are_those_of_watch(saved):
    """On a terminal of the same size every step looks as it did, and the text stays above."""
    watched, replayed = Terminal(40, 20, *COUNT), Player(40, 20, str(saved))
    steps = len(load_trace(saved).step)
    for step in range(steps):
        assert replayed.rows() == watched.rows() and f"step {step % 4 + 1}/4" in watched.text()
        watched.next()
        if step == 3:
            watched.next()  # the canvas was committed
        replayed.next()
    rows = replayed.finish().rows()
    assert replayed.process.returncode == 0 and not replayed.screen.cursor.hidden
    assert "".join(rows) == load_trace(saved).text


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 6], ids=["first canvas", "second canvas"])
def test_ctrl_c_takes_the_canvas_away(saved, steps):
    text, terminal = load_trace(saved).text, Player(40, 20, str(saved))
    for _ in range(steps - 1):
        terminal.next()
    assert terminal.screen.cursor.hidden
    os.write(terminal.master, b"\x03")
    rows = terminal.finish().rows()
    assert terminal.process.returncode == 130 and not terminal.screen.cursor.hidden
    assert "".join(rows) == (text[:64] if steps > 4 else "") + "interrupted"
