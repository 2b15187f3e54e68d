"""The command line as a user meets it: exit codes, streams, one-line errors, Ctrl-C."""

import contextlib
import errno
import io
import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyte
import pytest

from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.generate import main
from mlx_dgemma.terminal.progress import ProgressLine, fit, last_row
from mlx_dgemma.trace.trace import load_trace
from tests.command import in_process

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "mlx_dgemma.generate"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, **options)


def test_help_is_quick_and_lists_the_tasks():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = run("--help")
        times.append(time.perf_counter() - began)
    assert done.returncode == 0
    assert "sudoku 1..4..1.2....3.1" in done.stdout and "--entropy-bound" in done.stdout
    assert min(times) < 0.5


def test_nothing_heavy_is_imported_for_a_usage_error():
    code = "import sys; from mlx_dgemma.generate import main\ntry: main(['--prompt', ''])\nexcept SystemExit: pass\n"
    code += "assert not {'mlx', 'mlx_lm', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)


def test_text_on_stdout_and_all_else_on_stderr(capsys):
    code, out, err = in_process(capsys, "--prompt", "roman 3")
    assert code == 0
    assert out.count("\n") == 1 and out.endswith("\n")
    for word in ("prompt:", "text:", "steps:", "memory:", "tokens per forward", "tokens/s", "canvas"):
        assert word in err


def test_quiet_says_nothing_on_stderr(capsys):
    code, out, err = in_process(capsys, "--prompt", "roman 3", "--quiet")
    assert (code, err) == (0, "") and out.strip()


def test_json_is_one_object(capsys):
    code, out, _ = in_process(capsys, "--prompt", "roman 3", "--json", "--seed", "4", "--max-denoising-steps", "3")
    result = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert (result["model"], result["prompt"], result["seed"]) == ("embedded", "roman 3", 4)
    assert result["steps_per_canvas"][0] <= 3
    assert {"prompt_tokens", "tokens_per_second", "tokens_per_forward", "peak_memory"} <= set(result["stats"])
    assert in_process(capsys, "--prompt", "roman 3", "--json", "--seed", "4", "--max-denoising-steps", "3")[1] != ""


def test_characters_that_the_checkpoint_does_not_know_are_refused(capsys):
    code, out, err = in_process(capsys, "--prompt", "upper caf\u00e9 \u65e5")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(
        "error: the prompt has characters that the checkpoint's tokenizer does not know: 'é' (U+00E9)"
    )
    assert err.endswith("'日' (U+65E5); leave them out\n")


def test_one_seed_one_output(capsys):
    outputs = {in_process(capsys, "--prompt", "upper abcdefgh", "--seed", "7", "--quiet")[1] for _ in range(2)}
    assert len(outputs) == 1


def test_prompt_from_stdin():
    done = run("--prompt", "-", "--quiet", input="roman 3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--prompt", "roman 3", "--quiet").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--prompt", ""],
        ["--prompt", " \n"],
        ["--prompt", "x", "--max-tokens", "0"],
        ["--prompt", "x", "--max-tokens", "many"],
        ["--prompt", "x", "--max-denoising-steps", "-1"],
        ["--prompt", "x", "--entropy-bound", "0"],
        ["--prompt", "x", "--entropy-bound", "nan"],
        ["--prompt", "x", "--t-min", "0.9", "--t-max", "0.8"],
        ["--prompt", "x", "--t-max", "-1"],
        ["--prompt", "x", "--confidence-threshold", "0"],
        ["--prompt", "x", "--stability-threshold", "-1"],
        ["--prompt", "x", "--token-choice", "best"],
        ["--prompt", "x", "--seed", "-1"],
        ["--prompt", "x", "--unknown"],
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, arguments):
    code, out, err = in_process(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "/nowhere", "--prompt", "x"], "no folder /nowhere"),
        (["--model", str(ROOT / "tests"), "--prompt", "x"], "no config.json in"),
        (["--prompt", "x" * 5000], "max_position_embeddings (4096)"),
        (["--prompt", "x", "--t-min", "0.9"], "t_max must be greater than t_min, got t_max=0.8 and t_min=0.9"),
        (["--prompt", "upper \udcff"], "not valid UTF-8"),
        (["--prompt", "x", "--system", "s", "--no-chat-template"], "--system needs the chat template"),
    ],
)
def test_failures_are_one_line_and_exit_1(capsys, arguments, complaint):
    code, out, err = in_process(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and complaint in err


def test_a_program_may_put_its_own_stream_in_place_of_stdout():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["roman 3", "--quiet"]) == 0
    assert out.getvalue() == "III\n"


def test_text_for_a_checkpoint_without_tokenizer(capsys, folder):
    code, _, err = in_process(capsys, "--model", str(folder), "--prompt", "x")
    assert code == 1 and err.count("\n") == 1 and "no tokenizer files" in err


def test_ctrl_c_ends_cleanly_with_what_was_committed():
    code = "import sys; from mlx_dgemma import generate\nfrom mlx_dgemma.text import transcript\n"
    code += "transcript.cut = lambda canvas, *rest: (canvas, False)\n"  # never stops on its own
    code += "sys.exit(generate.main(['--prompt', 'count 10 to 50', '--max-tokens', '3900']))"
    # a runner in the background may have SIGINT ignored, which children inherit
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, cwd=ROOT, preexec_fn=heed)
    first = os.read(process.stdout.fileno(), 4)  # the first canvas is there, the next one under way
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (first + out).endswith(b"\n") and len(first + out) > 20
    assert b"Traceback" not in err and b"(interrupted)" in err


def test_a_closed_pipe_is_not_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "--prompt", "roman 3"], stdout=writer, stderr=-1, text=True, cwd=ROOT, timeout=60)
    os.close(writer)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--prompt", "roman 3", "--quiet"], stdout=full, stderr=-1, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_stdout_is_utf8_whatever_the_locale(tmp_path):
    folder = shutil.copytree(EMBEDDED, tmp_path / "é")
    done = run(
        "--model",
        str(folder),
        "--prompt",
        "roman 3",
        "--json",
        "--quiet",
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and json.loads(done.stdout)["model"].endswith("é")
    assert run("--prompt", "-", input="upper \udcff", errors="surrogateescape").stderr.startswith("error: the prompt")


def on_a_terminal(*arguments: str) -> list[list[str]]:
    """What the screen shows after each piece that the command writes, both of its streams on one terminal."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=inner, stderr=inner, cwd=ROOT)
    os.close(inner)
    screen, shown = pyte.Screen(80, 24), []
    stream = pyte.ByteStream(screen)
    while True:
        try:
            pieces = re.split(rb"(?=\r)", os.read(terminal, 4096))  # a busy machine hands over several at once
        except OSError:  # the other side hung up
            break
        for piece in pieces:
            stream.feed(piece)
            shown.append([row.rstrip() for row in screen.display])
    process.wait(timeout=60)
    return shown


def test_progress_line_on_a_terminal():
    """A line per denoising step comes and goes below the text, and the text stands at the end."""
    text = run("--prompt", "count 20 to 44", "--quiet").stdout.strip()
    shown = on_a_terminal("--prompt", "count 20 to 44")
    steps = [rows for rows in shown if any("step" in row for row in rows)]
    assert any("canvas 1 · step 1/48" in row for row in steps[0]) and "accepted" in " ".join(steps[0])
    second = [rows for rows in steps if any("canvas 2" in row for row in rows)]
    assert second and all(rows[0] == text[:64] and "canvas 2" in rows[1] for rows in second)  # nothing of it is hidden
    assert shown[-1][0] == text and shown[-1][1].startswith("prompt:") and "step" not in " ".join(shown[-1][:1])


def test_rows_of_wide_characters():
    assert fit("日本語", 5) == "日本"
    assert last_row("first\nsecond line", 6) == " line"
    assert last_row("日本語日本語", 6) == "日本語"
    assert last_row("", 10) == ""


def test_a_terminal_that_goes_away_leaves_the_trace(capsys, monkeypatch, tmp_path):
    cleared = itertools.count()

    def clear(self):
        if next(cleared):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ProgressLine, "clear", clear)
    code, _, err = in_process(capsys, "roman 3", "--quiet", "--trace", str(tmp_path / "run.npz"))
    assert code == 1 and err == "error: [Errno 5] Input/output error\n"
    assert len(load_trace(tmp_path / "run.npz").step) >= 1
