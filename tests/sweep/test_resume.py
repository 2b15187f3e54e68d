"""A sweep from start to end on the embedded checkpoint; torn, killed, interrupted and resumed, it ends the same."""

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dgemma.sweep import journal
from mlx_dgemma.sweep.__main__ import main
from mlx_dgemma.sweep.grid import parse_grid
from mlx_dgemma.sweep.progress import duration
from mlx_dgemma.sweep.questions import Question
from mlx_dgemma.sweep.trials import Outcome, Row, plan_trials
from tests.sweep.test_sweep import in_process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "mlx_dgemma.sweep"]
FAST = ["--tasks", "roman", "--set", "max_denoising_steps=1,2,48"]  # a fast task at three points


def without_seconds(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return [[*record[:-2], record[-1]] for record in csv.reader(file)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of FAST with three questions that nothing interrupted."""
    path = tmp_path_factory.mktemp("sweep") / "o.csv"
    assert main([*FAST, "--n", "3", "--output", str(path)]) == 0
    return path


def copy(finished: Path, folder: Path, nbytes: int | None = None) -> Path:
    path = folder / "o.csv"
    path.write_bytes(finished.read_bytes()[:nbytes])
    journal.description_file(path).write_bytes(journal.description_file(finished).read_bytes())
    return path


def test_end_to_end(capsys, tmp_path):
    output, plot = tmp_path / "o.csv", tmp_path / "o.png"
    code, out, err = in_process(capsys, *FAST, "--n", 3, "--output", output, "--plot", plot)
    assert code == 0 and plot.read_bytes().startswith(b"\x89PNG")
    lines = out.splitlines()
    assert len(lines) == 12 and lines[5:7] == ["", "against max_denoising_steps=1, the same questions and noise:"]
    assert lines[0].startswith("| max_denoising_steps | task | n | exact match | 95 % interval |")
    assert err.splitlines()[-3:] == [
        "9 of 9 generations, 0:00:00 left", f"9 generations: {output}; their run: {output}.run.json", f"plot: {plot}"
    ]  # fmt: skip
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "max_denoising_steps task index prompt answer correct steps canvases tokens seconds work"
    assert list(rows[0]) == columns.split()
    asked = [[(r["index"], r["prompt"]) for r in rows if r["max_denoising_steps"] == n] for n in ("1", "2", "48")]
    assert len(asked[0]) == 3 and asked[0] == asked[1] == asked[2]
    assert all(int(r["steps"]) <= int(r["max_denoising_steps"]) for r in rows)
    for line, n in zip(lines[2:5], ("1", "2", "48"), strict=True):  # the table says what the rows say
        chosen = [r for r in rows if r["max_denoising_steps"] == n]
        steps = sum(int(r["steps"]) for r in chosen) / sum(int(r["canvases"]) for r in chosen)
        exact = sum(r["correct"] == "1" for r in chosen) / 3
        assert line.startswith(f"| {n} | roman | 3 | {100 * exact:.1f} % |") and f" {steps:.2f} |" in line


def test_the_seed_and_the_settings_reach_the_sampler(capsys, tmp_path):
    """Row by row the same as generating with these settings and seed + index."""
    from mlx_dgemma import GenerationConfig, generate_text, load

    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "o.csv"
    prompts = ["sudoku ..4..1......3...", "sudoku 1.........2..3..", "sudoku .2......3...4..."]
    pairs.write_text("".join(json.dumps({"prompt": p, "answer": "?"}) + "\n" for p in prompts))
    arguments = ["--data", pairs, "--set", "token_choice=categorical,argmax", "--set", "t_max=1.5", "--max-tokens", 12]
    arguments += ["--set", "max_denoising_steps=2", "--seed", 7, "--output", output]
    assert in_process(capsys, *arguments)[0] == 0
    model, tokenizer = load()
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def answers(seeds: list[int]) -> list[str]:
        base = {"max_new_tokens": 12, "t_max": 1.5, "max_denoising_steps": 2}
        configs = [GenerationConfig(**base, token_choice=row["token_choice"]) for row in rows]
        chosen = zip(rows, configs, seeds, strict=True)
        return [generate_text(model, tokenizer, row["prompt"], config, seed=seed).text for row, config, seed in chosen]

    assert [row["prompt"] for row in rows] == [p for p in prompts for _ in range(2)]
    own = [row["answer"] for row in rows]
    assert own == answers([7, 7, 8, 8, 9, 9]) != answers([7] * 6)
    assert {row["task"] for row in rows} == {"pairs"} and {row["steps"] for row in rows} == {"2"}
    assert len({tuple(own[i::2]) for i in range(2)}) == 2  # the token choice arrived


def test_answers_to_a_file_are_judged(capsys, tmp_path):
    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "o.csv"
    pairs.write_text('{"prompt": "upper ab", "answer": ["x", " AB "]}\n{"prompt": "upper ab", "answer": "ab"}\n')
    assert in_process(capsys, "--data", pairs, "--output", output)[0] == 0
    with output.open(newline="") as file:
        assert [(row["answer"], row["correct"]) for row in csv.DictReader(file)] == [("AB", "1"), ("AB", "0")]


def test_a_setting_of_the_grid_goes_before_the_default_of_tasks(capsys, tmp_path):
    output = tmp_path / "o.csv"
    assert in_process(capsys, "--tasks", "count", "--n", 1, "--set", "max_new_tokens=1,2", "--output", output)[0] == 0
    with output.open(newline="") as file:
        assert [row["tokens"] for row in csv.DictReader(file)] == ["1", "2"]


def test_rows_from_before_there_was_work_are_refused_in_a_line(capsys, tmp_path, finished):
    path = copy(finished, tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][-1] == "work"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(row[:-1] for row in rows)
    code, out, err = in_process(capsys, *FAST, "--n", 3, "--output", path, "--resume")
    assert (code, out) == (1, "") and "these are other columns" in err and err.count("\n") == 1


def test_an_output_is_neither_overwritten_nor_mixed(capsys, tmp_path, finished):
    path = copy(finished, tmp_path)
    code, out, err = in_process(capsys, *FAST, "--n", 3, "--output", path)
    assert (code, out) == (1, "") and err == f"error: {path} exists; --resume goes on with it, --force starts over\n"
    assert path.read_bytes() == finished.read_bytes()
    assert in_process(capsys, *FAST, "--n", 1, "--output", path, "--force")[0] == 0
    assert without_seconds(path) == without_seconds(finished)[:4]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([*FAST, "--n", "2"], "n is 3 there and 2 here;"),
        ([*FAST, "--n", "3", "--seed", "1"], "seed is 0 there and 1 here;"),
        ([*FAST, "--n", "3", "--max-tokens", "9"], "max_tokens is 128 there and 9 here;"),
        (["--tasks", "sort", *FAST[2:], "--n", "3"], 'tasks is ["roman"] there and ["sort"] here;'),
        ([*FAST, "--set", "t_min=0.1", "--n", "3"], "grid is {"),
        ([*FAST, "--n", "3", "--model", "MODEL"], 'model is "sha256 '),
        (
            ["--data", "DATA", *FAST[2:], "--n", "3"],
            'tasks is ["roman"] there and unset here, data is unset there and "sha256',
        ),
    ],
)
def test_another_run_cannot_be_resumed(capsys, tmp_path, finished, folder, arguments, complaint):
    path, data = copy(finished, tmp_path), tmp_path / "d.jsonl"
    data.write_text('{"prompt": "roman 3", "answer": "III"}\n')
    arguments = [{"MODEL": str(folder), "DATA": str(data)}.get(a, a) for a in arguments]
    code, out, err = in_process(capsys, *arguments, "--output", path, "--resume")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {path} belongs to another run: ") and complaint in err
    assert path.read_bytes() == finished.read_bytes()


def test_a_finished_run_is_only_shown_again(capsys, tmp_path, finished, monkeypatch):
    monkeypatch.setattr("mlx_dgemma.checkpoint.loading.load", None)  # nothing is loaded for that
    path = copy(finished, tmp_path)
    code, out, err = in_process(capsys, *FAST, "--n", 3, "--output", path, "--resume")
    assert code == 0 and out.count("\n") == 12
    assert err == f"9 generations: {path}; their run: {path}.run.json\n"
    assert path.read_bytes() == finished.read_bytes()


def test_a_file_without_description_is_not_resumed(capsys, tmp_path, finished):
    path = copy(finished, tmp_path)
    journal.description_file(path).write_text("[]")
    code, _, err = in_process(capsys, *FAST, "--n", 3, "--output", path, "--resume")
    assert code == 1 and err.count("\n") == 1 and "o.csv.run.json is missing or unreadable" in err


@pytest.mark.parametrize(
    ("line", "text"), [(2, '1,"roman",0,"other","X",1,1,1,1,1.0'), (3, "1,2"), (4, '"x"y"z"'), (1, "a,b")]
)
def test_rows_of_somebody_else_are_named(capsys, tmp_path, finished, line, text):
    path = copy(finished, tmp_path)
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    code, _, err = in_process(capsys, *FAST, "--n", 3, "--output", path, "--resume")
    assert code == 1 and err.count("\n") == 1 and err.startswith(f"error: {path}:{line}: not a row that this run wrote")


answers = st.text(st.sampled_from('a",\r\n é\u2028\x00|'), max_size=8)


@given(st.lists(answers, min_size=4, max_size=4), st.integers(0, 2000))
def test_whatever_is_cut_off_the_rows_before_it_are_read_back(tmp_path_factory, texts, cut):
    grid = parse_grid(["t_min=0.1,0.25"])
    plan = plan_trials(grid, [Question("t", i, texts[i], str.isalpha, "") for i in range(2)])
    rows = [
        Row(
            trial.settings,
            Outcome("t", trial.question.index, trial.question.prompt, text, i % 2 == 0, i + 1, 1, 2, 0.5, 0.25),
        )
        for i, (trial, text) in enumerate(zip(plan, texts, strict=True))
    ]
    path = tmp_path_factory.mktemp("torn") / "o.csv"
    ends = []
    with journal.begin(path, grid, {"identity": {}}) as file:
        for row in rows:
            journal.append(file, row)
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    os.truncate(path, min(cut, len(whole)))
    back, nbytes = journal.read_back(path, grid, plan, {"identity": {}})
    assert back == rows[: len(back)] and len(back) == sum(end <= cut for end in ends)
    if nbytes:
        with journal.go_on(path, nbytes) as file:
            for row in rows[len(back) :]:
                journal.append(file, row)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("keep", [0, 20, -1, -30, -200])
def test_resumed_after_a_torn_line(capsys, tmp_path, finished, keep):
    path = copy(finished, tmp_path, keep)
    assert in_process(capsys, *FAST, "--n", 3, "--output", path, "--resume")[0] == 0
    assert without_seconds(path) == without_seconds(finished)


def test_resumed_after_a_kill_between_description_and_file(capsys, tmp_path, finished):
    path = copy(finished, tmp_path)
    path.unlink()
    assert in_process(capsys, *FAST, "--n", 3, "--output", path, "--resume")[0] == 0
    assert without_seconds(path) == without_seconds(finished)


def begun(path: Path, *arguments: str, rows: int, **options) -> subprocess.Popen:
    """A process that has written so many rows and is still at it."""
    # a runner in the background may have SIGINT ignored, which children inherit
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    command = [*COMMAND, *arguments, "--output", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=heed, text=True, stdout=-1, stderr=-1, **options)
    limit = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") <= rows:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    return process


def test_killed_and_resumed_it_is_the_run_that_was_not(capsys, tmp_path):
    arguments = [*FAST, "--n", "12"]
    path, other = tmp_path / "killed.csv", tmp_path / "o.csv"
    for rows in (4, 12):
        process = begun(path, *arguments, "--resume", rows=rows)
        process.kill()
        process.communicate()
        assert rows <= path.read_bytes().count(b"\n") < 37
    assert in_process(capsys, *arguments, "--output", path, "--resume")[0] == 0
    assert in_process(capsys, *arguments, "--output", other)[0] == 0
    assert without_seconds(path) == without_seconds(other) and len(without_seconds(path)) == 37


def test_ctrl_c_shows_what_is_done_and_how_to_go_on(tmp_path):
    process = begun(tmp_path / "o.csv", *FAST, "--n", "200", rows=5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    done = sum(int(line.split("|")[3]) for line in out.split("\n\n")[0].splitlines()[2:])
    assert 5 <= done == (tmp_path / "o.csv").read_bytes().count(b"\n") - 1
    last = err.splitlines()[-1]
    assert last == f"interrupted after {done} of 600 generations; the same command goes on with --resume"


def test_a_full_disk_is_one_line(capsys, finished, tmp_path, monkeypatch):
    def full(file, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "append", full)
    code, out, err = in_process(capsys, *FAST, "--n", 3, "--output", tmp_path / "o.csv")
    assert (code, out, err) == (1, "", "error: [Errno 28] No space left on device\n")


def test_progress_and_table_on_a_terminal(tmp_path):
    terminal, inner = pty.openpty()
    environment = {**os.environ, "COLUMNS": "160", "TERM": "xterm"}
    command = [*COMMAND, *FAST, "--n", "2", "--output", str(tmp_path / "o.csv")]
    process = subprocess.Popen(command, stdout=inner, stderr=inner, cwd=ROOT, env=environment)
    os.close(inner)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other side hung up
            break
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())
    assert "6/6" in text and "left" in text and "  exact match  " in text and "| --- |" not in text


def test_duration():
    assert (duration(0.4), duration(61), duration(3725.2)) == ("0:00:00", "0:01:01", "1:02:05")


def test_a_checkpoint_without_tokenizer_takes_no_text(capsys, tmp_path, folder):
    code, _, err = in_process(capsys, "--model", folder, "--tasks", "roman", "--output", tmp_path / "o.csv")
    assert code == 1 and err.count("\n") == 1 and "roman 0: the checkpoint has no tokenizer files" in err


def test_fingerprint_tells_weights_apart(tmp_path):
    weights = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    seen = set()
    for content in (b"\0" * 3_000_000, b"\0" * 2_999_999 + b"\1", b"\0" * 2_999_999):
        weights.write_bytes(content)
        seen.add(journal.fingerprint(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    assert len(seen | {journal.fingerprint(tmp_path)}) == 4
