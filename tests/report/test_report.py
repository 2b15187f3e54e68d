"""The report as files: one page that needs nothing, PNG plots, the command line."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from mlx_dgemma import CanvasPlan
from mlx_dgemma.report.__main__ import main
from mlx_dgemma.report.page import render
from mlx_dgemma.report.plots import curves, heat_map, write_plots
from mlx_dgemma.report.summary import summary
from mlx_dgemma.terminal.watch import drawable
from mlx_dgemma.trace.trace import Trace, load_trace
from tests.report.runs import HOSTILE, PROMPT, recorded, settling

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trace() -> Trace:
    return recorded()


@pytest.fixture(scope="module")
def saved(trace, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run.npz"
    trace.save(path)
    return path


# ---- the file


def test_one_file_that_loads_nothing(trace):
    page = render(trace)
    without_data = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    addresses = set(re.findall(r"https?://[^\"' )]+", without_data))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    assert re.findall(r'(?:src|href)="([^"]*)"', without_data) == ["data:,"]
    assert not re.search(
        r"\b(fetch|XMLHttpRequest|import|innerHTML|insertAdjacentHTML|eval|document\.write)\b", without_data
    )
    assert "{{" not in without_data.replace("\\{\\{", "")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for element in ("style", "script"):
        content = re.search(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


def test_the_data_holds_no_markup(trace):
    evil = dataclasses.replace(trace, pieces=dict(enumerate(HOSTILE)))
    [data] = re.findall(r'<script type="application/json" id="trace">(.*)</script>\n<script>', render(evil), re.DOTALL)
    assert not set("<>&\u2028\u2029\n") & set(data)
    assert dict(json.loads(data)["pieces"]) == {token: drawable(piece) for token, piece in evil.pieces.items()}


def test_the_summary_tells_the_run(trace):
    page = html.unescape(render(trace))
    stats, tokens = trace.committed[-1].stats, sum(c.token_count for c in trace.committed)
    per_canvas = [c.steps for c in trace.committed]
    for name, value in (
        ("prompt", PROMPT),
        ("model", "embedded"),
        ("seed", "1"),
        ("finish reason", "stop"),  # the second canvas is padding
        ("canvases", "2 canvases, 64 positions each"),
        ("denoising steps", f"{sum(per_canvas)} ({per_canvas[0]} + {per_canvas[1]})"),
        ("tokens", str(tokens)),
        ("seconds", f"{stats.seconds:.3f}"),
        ("tokens per second", f"{stats.tokens_per_second:.1f}"),
        ("entropy_bound", "0.01 nats"),
        ("max_denoising_steps", "8"),
        ("mlx-dgemma version", "0.1.0"),
    ):
        assert f"<th scope=row>{name}</th><td>{value}</td>" in page


def test_the_summary_tells_what_steered_the_run():
    given = "1{2}4{2}1{1}2{4}3{1}1"
    trace = recorded(eos=True, canvas=CanvasPlan(given, "1234", noise=0.25, seed=7))
    page = html.unescape(render(trace))
    for name, value in (
        ("template", given),
        ("draft", "1234"),
        ("noise share of the draft", "0.25, seed 7"),
        ("clamped positions", "54, 48 of them the end and what is behind it"),
    ):
        assert f"<th scope=row>{name}</th><td>{value}</td>" in page
    ids = dataclasses.replace(trace, plan=CanvasPlan([5, None, None, 7], [8, 9]))
    page = html.unescape(render(ids))
    assert "<td>token ids 5 {2} 7</td>" in page and "<td>token ids 8 9</td>" in page
    assert "<th scope=row>noise share of the draft</th><td>0</td>" in page


def test_the_summary_and_the_curves_tell_what_was_computed(trace):
    run = settling()
    told, last = dict(summary(run)), run.committed[-1].stats
    assert told[
        "positions computed"
    ] == f"{run.rows.sum()} of {run.accepted.size} ({run.rows.sum() / run.accepted.size:.0%})".replace("%)", " %)")
    assert told["work"] == f"{last.full_steps / last.tokens:.3f} full steps per token" and 0 < last.work < 1
    *_, axis = curves(run).axes
    assert axis.get_ylabel() == "computed positions" and axis.lines[0].get_ydata().tolist() == run.rows.tolist()
    assert len(curves(trace).axes) == 3 and "positions computed" not in dict(summary(trace))
    old = dataclasses.replace(run, rows=0 * run.rows, computed=np.ones_like(run.computed))
    assert not {"positions computed", "work"} & dict(summary(old)).keys()


def test_the_heat_map_shows_what_had_settled():
    run = settling()
    state = np.asarray(heat_map(run).axes[1].images[0].get_array()).T  # (S, C)
    np.testing.assert_array_equal(state == 3, ~run.computed & run.accepted[:, 0])


def test_a_free_run_says_nothing_of_steering(trace):
    assert not {"template", "draft", "clamped positions"} & {name for name, _ in summary(trace)}


def test_an_interrupted_run(trace):
    cut = int((trace.canvas_index == 0).sum()) + 1
    arrays = {f.name: getattr(trace, f.name)[:cut] for f in dataclasses.fields(trace)
              if isinstance(getattr(trace, f.name), np.ndarray) and f.name != "prompt_ids"}  # fmt: skip
    page = render(dataclasses.replace(trace, **arrays, committed=(), finish_reason="interrupted"))
    assert "2 canvases, 0 committed" in page and "<td>interrupted</td>" in page


def test_prompts_of_all_three_forms(trace):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert "system: be brief\nuser: hi" in render(dataclasses.replace(trace, prompt=messages))
    assert "token ids 2 5 9" in render(dataclasses.replace(trace, prompt=[2, 5, 9]))


def test_every_file_of_the_page_is_packaged():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = package["package-data"]["mlx_dgemma.report"]
    folder = ROOT / "mlx_dgemma" / "report"
    packaged = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {p for p in folder.rglob("*") if p.suffix in (".html", ".css", ".js")} <= packaged and packaged
    assert "mlx_dgemma.report" in package["packages"]


# ---- plots


@pytest.mark.slow
def test_plots_show_the_run(trace, tmp_path):
    heat_map, curves = write_plots(trace, tmp_path / "run")
    assert (heat_map.name, curves.name) == ("run-heatmap.png", "run-curves.png")
    for path in (heat_map, curves):
        picture = imread(path)
        assert picture.shape[0] >= 900 and picture.shape[1] >= 1200
        assert len(np.unique(picture[..., 0])) > 20
    other = dataclasses.replace(trace, entropy=trace.entropy[::-1].copy(), accepted=~trace.accepted)
    changed, _ = write_plots(other, tmp_path / "other")
    assert (imread(changed) != imread(heat_map)).any()


def test_plots_say_what_they_are_of(trace):
    for figure in (heat_map(trace), curves(trace)):
        assert figure.get_suptitle() == f"{PROMPT} · embedded · seed 1"
    own = dataclasses.replace(
        trace, prompt="a $x_1$ \x1b[2J\n" + "long " * 40, seed=None, model_id="/home/me/models/mine"
    )
    caption = heat_map(own).get_suptitle()
    assert caption.startswith("a $x_1$ ␛[2J long long") and caption.endswith("… · mine · own noise")


def test_the_colours_of_a_plot_are_those_of_every_run(trace):
    for factor in (1, 100):
        image = heat_map(dataclasses.replace(trace, entropy=trace.entropy * factor)).axes[0].images[0]
        assert image.norm([0.0, 0.1, 0.5, 1.5, 5.0, 9.0]).tolist() == [0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.slow
def test_a_plot_for_every_sample(trace, tmp_path):
    two = {n: np.concatenate([getattr(trace, n)] * 2, 1) for n in ("canvas", "draft", "entropy", "accepted", "clamped")}
    names = [path.name for path in write_plots(dataclasses.replace(trace, **two), tmp_path / "x")]
    assert names == ["x-heatmap.png", "x-heatmap-2.png", "x-curves.png"]


# ---- command line


def in_process(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_the_command_line_writes_where_it_is_told(saved, tmp_path, capsys):
    assert in_process(capsys, saved) == (0, f"{saved.with_suffix('.html')}\n", "")
    output = tmp_path / "page.html"
    (tmp_path / "plots").mkdir()
    for png, names in (
        (["--png"], ("page-heatmap.png", "page-curves.png")),
        (["--png", tmp_path / "plots"], ("plots/page-heatmap.png", "plots/page-curves.png")),
        (["--png", tmp_path / "my"], ("my-heatmap.png", "my-curves.png")),
    ):
        code, out, _ = in_process(capsys, saved, "-o", output, *png)
        assert code == 0 and out.split() == [str(output), *(str(tmp_path / name) for name in names)]
        assert all((tmp_path / name).stat().st_size > 1000 for name in names)
    assert output.read_text(encoding="utf-8") == render(load_trace(saved))


def test_failures_are_one_line(saved, tmp_path, capsys, monkeypatch):
    (tmp_path / "x.npz").write_text("no")
    for arguments, complaint in (
        ([tmp_path / "none.npz"], "No such file"),
        ([tmp_path / "x.npz"], "is not a trace"),
        ([""], "Is a directory"),
        ([saved, "-o", tmp_path / "no" / "x.html"], "there is no folder"),
        ([saved, "-o", tmp_path / "x.html", "--png", tmp_path / "no" / "x"], "there is no folder"),
    ):
        code, out, err = in_process(capsys, *arguments)
        assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1 and complaint in err
    monkeypatch.setattr("mlx_dgemma.report.plots.find_spec", lambda name: None)
    code, _, err = in_process(capsys, saved, "-o", tmp_path / "y.html", "--png")
    assert code == 1 and err.count("\n") == 1 and "pip install 'mlx-dgemma[plots]'" in err
    assert not (tmp_path / "y.html").exists()


def test_the_page_never_replaces_the_trace(saved, capsys):
    before = saved.read_bytes()
    code, _, err = in_process(capsys, saved, "-o", saved)
    assert code == 2 and err.count("\n") == 1 and "would replace the trace" in err
    assert saved.read_bytes() == before


def test_help_imports_nothing_heavy():
    code = "import sys; from mlx_dgemma.report.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'mlx', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
