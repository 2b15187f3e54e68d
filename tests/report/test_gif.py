"""The GIF to share, and the command line that makes it and the SVG."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import picture
from mlx_dgemma.report.__main__ import main
from mlx_dgemma.report.gif import LAST, STEP, write_gif
from mlx_dgemma.report.svg import draw
from mlx_dgemma.trace.trace import Trace
from tests.report.runs import WORLD, hostile, recorded, with_texts
from tests.screen import ROOT


@pytest.fixture(scope="module")
def trace() -> Trace:
    return picture.run()


@pytest.fixture(scope="module")
def saved(trace, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "run.npz"
    trace.save(path)
    return path


def test_the_gif_has_a_frame_a_step(tmp_path):
    two_canvases = recorded()
    write_gif(two_canvases, tmp_path / "run.gif")
    with Image.open(tmp_path / "run.gif") as gif:
        assert gif.n_frames == len(two_canvases.step) and gif.info["loop"] == 0
        durations, pictures = [], []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
            pictures.append(np.array(gif.convert("L")))
    assert durations == [STEP] * (len(durations) - 1) + [LAST] and LAST > STEP
    assert len({p.tobytes() for p in pictures}) == len(pictures) and pictures[0].mean() > 230  # on paper
    ink = [int((p < 128).sum()) for p in pictures]
    assert ink[int((two_canvases.canvas_index == 0).sum()) - 1] > ink[0]


def test_a_sudoku_is_far_below_a_megabyte(trace, tmp_path):
    for across in (4, None):
        write_gif(trace, tmp_path / "run.gif", across)
        assert len(trace.step) == 37 and (tmp_path / "run.gif").stat().st_size < 200_000


def test_hostile_and_foreign_texts_in_a_gif(trace, tmp_path):
    write_gif(hostile(with_texts(trace, WORLD)), tmp_path / "run.gif")
    with Image.open(tmp_path / "run.gif") as gif:
        assert gif.n_frames == len(trace.step)


def test_a_gif_without_matplotlib_has_another_font(trace, tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_dgemma.report.gif.find_spec", lambda name: None)
    write_gif(trace, tmp_path / "run.gif")
    assert (tmp_path / "run.gif").stat().st_size > 1000


# ---- command line


def test_the_command_line_writes_pictures(saved, trace, tmp_path, capsys):
    for arguments, names in (
        (["--svg", "--gif"], ["page.html", "page.svg", "page.gif"]),
        (["--svg", tmp_path / "a.svg"], ["page.html", "a.svg"]),
        (["--gif", f"{tmp_path}{os.sep}", "--columns", "4"], ["page.html", "page.gif"]),
    ):
        page = tmp_path / "page.html"
        assert main([str(argument) for argument in (saved, "-o", page, *arguments)]) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert (tmp_path / "a.svg").read_text("utf-8") == draw(trace)
    with Image.open(tmp_path / "page.gif") as gif:
        assert gif.size[0] == 480


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--columns", "4"], "--columns needs --svg or --gif"), (["--svg", "--columns", "1"], "must be at least 2")],
)  # fmt: skip
def test_bad_usage_is_one_line(saved, capsys, arguments, complaint):
    with pytest.raises(SystemExit) as stop:
        main([str(saved), *arguments])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and complaint in err and err.count("\n") == 1


def test_a_picture_never_replaces_the_trace(saved, capsys):
    before = saved.read_bytes()
    for option in ("--svg", "--gif"):
        with pytest.raises(SystemExit):
            main([str(saved), option, str(saved)])
        assert (
            f"the picture would replace the trace {saved}; give another name with {option}" in capsys.readouterr().err
        )
    assert saved.read_bytes() == before


def test_an_svg_needs_neither_pillow_nor_matplotlib(saved, tmp_path):
    code = "import sys; from mlx_dgemma.report.__main__ import main\n"
    code += f"assert main([{str(saved)!r}, '-o', {str(tmp_path / 'x.html')!r}, '--svg']) == 0\n"
    code += "assert not {'PIL', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
