"""Recording: what it costs, and that the command line loses nothing."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.generate import main
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import Trace, load_trace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def test_the_consumers_time_is_not_the_steps(engine):
    recorder = Recorder(engine, Request("roman 3"))
    done, pause = list(engine.stream(Request("roman 3"))), 0.4
    for _ in record(done, recorder):  # nothing is computed any more: all the time is the consumer's
        time.sleep(pause)
    trace = recorder.trace()
    assert trace.seconds.max() < pause / 2
    assert trace.elapsed[-1] >= pause * (len(trace.step) - 1)


@pytest.mark.slow
def test_recording_costs_less_than_5_percent_of_a_step(engine):
    """Medians of what alternates: the recorder's own time for each event against the time of that step."""
    request, costs = Request("sort dcba", settings=GenerationConfig(confidence_threshold=1e-9)), []
    recorder = Recorder(engine, request)
    for event in engine.stream(request):
        began = time.perf_counter()
        recorder.add(event)
        costs.append(time.perf_counter() - began)
    steps = recorder.trace().seconds
    assert len(steps) >= 48
    assert statistics.median(costs) < 0.05 * statistics.median(steps)


def test_each_step_has_its_own_time(engine):
    """No step is counted with its successor: the last one takes as long as the others."""
    settings = GenerationConfig(max_denoising_steps=14, confidence_threshold=1e-9, max_new_tokens=64)
    shares = []
    for seed in range(5):
        request = Request("sudoku 1...............", settings=settings, seed=seed)
        recorder = Recorder(engine, request)
        for _ in record(engine.stream(request), recorder):
            pass
        seconds = recorder.trace().seconds
        shares.append(seconds[-1] / statistics.median(seconds))
    assert statistics.median(shares) > 0.4  # it was 0.05


def test_no_step_no_trace(engine):
    with pytest.raises(DGemmaError, match="before its first denoising step"):
        Recorder(engine, Request("roman 3")).trace()


# ---- command line


def test_the_command_line_records(tmp_path, capsys):
    path = tmp_path / "run.npz"
    assert main(["--prompt", "roman 3", "--seed", "5", "--trace", str(path), "--quiet", "--t-max", "0.9"]) == 0
    trace = load_trace(path)
    assert capsys.readouterr().out.strip() == trace.text == "III"
    assert (trace.seed, trace.model_id, trace.settings["t_max"], trace.prompt) == (5, "embedded", 0.9, "roman 3")
    assert os.listdir(tmp_path) == ["run.npz"]


@pytest.mark.parametrize(
    ("path", "complaint"),
    [("no/such/run.npz", "there is no folder"), (".", "no ordinary file"), ("x" * 300, "File name too long")],
)
def test_a_place_that_cannot_be_written_is_told_before_the_model_is_loaded(
    tmp_path, capsys, monkeypatch, path, complaint
):
    monkeypatch.setattr("mlx_dgemma.checkpoint.loading.load", lambda *a: pytest.fail("the model was loaded"))
    assert main(["--prompt", "roman 3", "--trace", str(tmp_path / path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and complaint in err


def test_a_trace_that_cannot_be_saved_costs_the_trace_not_the_text(tmp_path, capsys, monkeypatch):
    def full(self, path):
        raise DGemmaError(f"{path} could not be written: No space left on device")

    monkeypatch.setattr(Trace, "save", full)
    assert main(["--prompt", "roman 3", "--trace", str(tmp_path / "t.npz"), "--json", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["text"] == "III" and "No space left" in err and err.count("\n") == 1


def test_ctrl_c_keeps_what_was_recorded(tmp_path):
    path = tmp_path / "run.npz"
    code = "import sys; from mlx_dgemma import generate\nfrom mlx_dgemma.text import transcript\n"
    code += "transcript.cut = lambda canvas, *rest: (canvas, False)\n"  # never stops on its own
    code += f"sys.exit(generate.main(['--prompt', 'count 10 to 50', '--max-tokens', '3900', '--trace', {str(path)!r}]))"
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, cwd=ROOT, preexec_fn=heed)
    os.read(process.stdout.fileno(), 4)  # the first canvas is there, the next one under way
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    trace = load_trace(path)
    assert trace.finish_reason == "interrupted" and len(trace.committed) >= 1
    assert trace.text.startswith("10 11 12")


def test_a_crash_keeps_what_was_recorded(tmp_path, monkeypatch):
    """A closed stdout, a device that fails: the run's trace is still there."""
    path = tmp_path / "run.npz"
    monkeypatch.setattr(
        "mlx_dgemma.terminal.progress.ProgressLine.text", lambda *a: (_ for _ in ()).throw(RuntimeError("gone"))
    )
    with pytest.raises(RuntimeError, match="gone"):
        main(["--prompt", "count 18 to 50", "--trace", str(path), "--quiet"])
    assert len(load_trace(path).committed) == 1
