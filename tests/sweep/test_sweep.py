"""The sweep: its grid, questions, figures, frontier and plot. What interrupts it is in test_resume.py."""

import io
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mlx_dgemma import DGemmaError
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.sweep import frontier
from mlx_dgemma.sweep.__main__ import main
from mlx_dgemma.sweep.grid import FIELDS, Grid, parse_grid
from mlx_dgemma.sweep.questions import draw_questions, read_pairs
from mlx_dgemma.sweep.show import drawn
from mlx_dgemma.sweep.summary import ALL, markdown, score, summarise, table, wilson
from mlx_dgemma.sweep.trials import Outcome, Row, plan_trials
from mlx_dgemma.tasks import HARD
from mlx_dgemma.tasks.squares import keeps, sudoku_grids

ROOT = Path(__file__).parents[2]


def in_process(capsys, *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_every_field_but_the_stop_tokens_has_an_axis():
    assert set(FIELDS) == set(GenerationConfig.__dataclass_fields__) - {"eos_token_id"}
    assert FIELDS["max_denoising_steps"] is int and FIELDS["entropy_bound"] is float


@given(
    steps=st.lists(st.integers(1, 1000), min_size=1, max_size=4, unique=True),
    bounds=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4, unique=True),
)
def test_the_grid_is_the_product_with_typed_values(steps, bounds):
    grid = parse_grid(
        [f"max_denoising_steps={','.join(map(str, steps))}", f"entropy_bound={', '.join(map(repr, bounds))}"]
    )
    assert grid.points() == [{"max_denoising_steps": n, "entropy_bound": b} for n in steps for b in bounds]
    assert all(type(p["max_denoising_steps"]) is int and type(p["entropy_bound"]) is float for p in grid.points())


@given(st.text(max_size=20))
def test_any_other_text_is_a_one_line_error_or_a_value_the_field_takes(text):
    complaint, values = "", []
    try:
        values = parse_grid([f"max_denoising_steps={text}"]).axes["max_denoising_steps"]
    except DGemmaError as error:
        complaint = str(error)
    assert bool(values) != ("max_denoising_steps" in complaint)
    assert all(n >= 1 for n in values) and len(complaint.splitlines()) <= 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "steps=1"], "--set steps: no such field; there are max_new_tokens"),
        (["--set", "eos_token_id=1"], "--set eos_token_id: no such field"),
        (["--set", "entropy_bound"], "--set entropy_bound has no value"),
        (["--set", "entropy_bound="], "--set entropy_bound: '' is not a number"),
        (["--set", "entropy_bound=0.1,x"], "--set entropy_bound: 'x' is not a number"),
        (["--set", "entropy_bound=nan"], "--set entropy_bound must be a float > 0, got nan"),
        (["--set", "max_denoising_steps=1.5"], "--set max_denoising_steps: '1.5' is not an integer"),
        (["--set", "max_denoising_steps=0"], "--set max_denoising_steps must be a positive integer, got 0"),
        (["--set", "token_choice=argmax,best"], "--set token_choice must be one of categorical, argmax, got 'best'"),
        (["--set", "t_min=0.1,0.10"], "--set t_min: 0.1 is given twice"),
        (["--set", "t_min=0.1", "--set", "t_min=0.2"], "--set t_min is given twice"),
        (["--set", "t_min=0.1,0.5", "--set", "t_max=0.4"], "t_max must be greater than t_min"),
        (["--set", "max_new_tokens=5", "--max-tokens", "5"], "--max-tokens and --set max_new_tokens exclude"),
        (["--tasks", "roman", "cooking"], "--tasks: no task 'cooking'"),
        (["--tasks", "roman,roman"], "--tasks names a task twice"),
        (["--tasks", "roman", "--data", "x.jsonl"], "not allowed with argument --tasks"),
        (["--model", "m"], "--model needs questions"),
        (["--n", "0"], "--n must be a positive integer"),
        (["--seed", "-1"], "--seed must be between 0 and"),
        (["--max-tokens", "0"], "max_new_tokens must be a positive integer"),
        (["--resume", "--force"], "not allowed with argument"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, arguments, complaint):
    code, out, err = in_process(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and complaint in err


def test_nothing_heavy_is_imported_for_a_usage_error():
    code = (
        "import sys; from mlx_dgemma.sweep.__main__ import main\ntry: main(['--set', 'x=1'])\nexcept SystemExit: pass\n"
    )
    code += "assert not {'mlx', 'mlx_lm', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)


# Newcombe 1998 (Statistics in Medicine 17, table I, method 3), and the edges
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.883, 1),
    ],
)
def test_wilson_interval(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_is_symmetric(pair):
    correct, n = pair
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low))


def outcome(task: str, index: int, correct: bool, steps: int, seconds: float = 1.0, answer: str = "a") -> Outcome:
    return Outcome(task, index, f"{task} {index}", answer, correct, steps, 2, 12, seconds, work=steps / 12)


def test_figures_of_outcomes():
    got = score([outcome("t", 0, True, 4, 1.0), outcome("t", 1, False, 8, 2.0), outcome("t", 2, True, 12, 9.0)])
    assert (got.n, got.correct, got.exact) == (3, 2, pytest.approx(2 / 3))
    assert (got.steps_per_canvas, got.tokens_per_forward, got.seconds, got.work) == (24 / 6, 36 / 24, 2.0, 24 / 36)


def test_table_has_a_line_per_point_and_task_and_one_for_all_tasks():
    grid = parse_grid(["max_denoising_steps=1,2,3"])
    done = [Row({"max_denoising_steps": 1}, outcome(task, 0, task == "a|", 2)) for task in ("a|", "b")]
    done.append(Row({"max_denoising_steps": 2}, outcome("a|", 0, True, 2)))  # then it was interrupted
    lines = summarise(done, grid)
    assert [(*line.settings.values(), line.task, line.score.n) for line in lines] == [
        (1, "a|", 1), (1, "b", 1), (1, ALL, 2), (2, "a|", 1), (2, ALL, 1)
    ]  # fmt: skip
    text = markdown(*table(lines, list(grid.axes))).splitlines()
    assert len(text) == 7 and {len(re.findall(r"(?<!\\)\|", line)) for line in text} == {10}
    assert "| 1 | all | 2 | 50.0 % | 9.5 – 90.5 | 1.00 | 6.00 | 0.1667 | 1.00 |" in text


@pytest.mark.parametrize(("width", "height"), [(80, 8), (140, 4)])
def test_the_table_of_two_swept_settings_is_whole_on_a_terminal(width, height):
    grid = parse_grid(["max_denoising_steps=2,48", "token_choice=argmax"])
    lines = summarise([Row(p, outcome(HARD, 0, True, p["max_denoising_steps"])) for p in grid.points()], grid)
    console = Console(file=io.StringIO(), width=width)
    console.print(drawn(*table(lines, grid.varying()), width), soft_wrap=True)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text and "argmax" not in text
    assert "20.7 – 100.0" in text and len([line for line in text.splitlines() if line.strip()]) == height


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_frontier_is_what_nobody_beats(points):
    chosen = frontier.frontier(points)
    best = [points[i] for i in chosen]
    assert all(a == b or (a[0] < b[0] and a[1] < b[1]) for a, b in pairwise(best))  # rises from left to right
    for i, (x, y) in enumerate(points):
        reached = max(quality for steps, quality in points if steps <= x)
        cheapest = min(steps for steps, quality in points if quality >= y)
        assert (i in chosen) == (y == reached and x == cheapest)


def test_questions_are_paired_and_points_take_turns():
    grid = parse_grid(["max_denoising_steps=1,2"])
    plan = plan_trials(grid, [*draw_questions(HARD, 5, 3), *draw_questions("roman", 5, 3)])
    asked = [[t.question for t in plan if t.settings == point] for point in grid.points()]
    assert asked[0] == asked[1] and len(asked[0]) == 6
    assert [q.index for q in asked[0]] == [0, 0, 1, 1, 2, 2]
    assert [q.prompt for q in draw_questions("roman", 5, 2)] == [q.prompt for q in draw_questions("roman", 5, 3)][:2]


def test_a_question_of_a_task_takes_every_right_answer():
    question = draw_questions(HARD, 0, 1)[0]
    puzzle = question.prompt.removeprefix("sudoku ")
    solutions = [grid for grid in sudoku_grids() if keeps(puzzle, grid)]
    assert solutions == [grid for grid in sudoku_grids() if question.check(grid)] and not question.check("1" * 16)


def test_pairs_of_a_file(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(
        '\ufeff{"prompt": "a", "answer": " é \\n"}\r\n\n{"prompt": "b", "answer": ["x", "y"], "id": 3}'.encode()
    )
    first, second = read_pairs(file)
    assert (first.task, first.prompt, second.index) == ("pairs", "a", 1)
    assert first.check("é") and first.check("\n é") and not first.check("e") and not first.check("")
    assert second.check("y ") and not second.check("xy")
    assert [q.prompt for q in read_pairs(file, 1)] == ["a"] and len(read_pairs(file, 9)) == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "needs the keys prompt and answer"),
        (b'{"prompt": "a"}', "needs the keys prompt and answer"),
        (b'{"prompt": " ", "answer": "x"}', "prompt must be a text that is not empty, got ' '"),
        (b'{"prompt": "\\ud800", "answer": "x"}', "prompt must be a text"),
        (b'{"prompt": 1, "answer": "x"}', "prompt must be a text"),
        (b'{"prompt": "a", "answer": 42}', "answer must be a text or a list of texts, got 42"),
        (b'{"prompt": "a", "answer": []}', "answer must be a text or a list of texts, got []"),
        (b'{"prompt": "a", "answer": ["x", null]}', "answer must be a text or a list of texts"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(capsys, tmp_path, line, complaint):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b'{"prompt": "a", "answer": "x"}\n\n' + line + b"\n")
    # also a line that --n leaves out
    code, out, err = in_process(capsys, "--data", file, "--n", 1, "--output", tmp_path / "o.csv")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {file}:3: {complaint}") and not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("content", [None, b"", b" \n\n"])
def test_a_file_without_pairs(capsys, tmp_path, content):
    file = tmp_path / "pairs.jsonl"
    if content is not None:
        file.write_bytes(content)
    code, _, err = in_process(capsys, "--data", file, "--output", tmp_path / "o.csv")
    assert code == 1 and err.count("\n") == 1 and err.startswith(f"error: --data {file}")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "t_min=0.3,0.9", "--tasks", "roman"], "with t_min=0.9: t_max must be greater than t_min"),
        (["--data", "long.jsonl"], "long.jsonl:2: the prompt has "),
        (
            ["--data", "strange.jsonl"],
            "strange.jsonl:1: the prompt has characters that the checkpoint's tokenizer does",
        ),
        (["--tasks", "roman", "--output", "."], "--output .: a folder; name a file"),
        (["--tasks", "roman", "--output", "nowhere/o.csv"], "--output nowhere/o.csv: its folder does not exist"),
        (["--tasks", "roman", "--plot", "o.docx"], "--plot o.docx: the name must end in .png, .pdf, .svg"),
        (["--tasks", "roman", "--plot", "nowhere/o.png"], "--plot nowhere/o.png: its folder does not exist"),
        (["--tasks", "roman", "--model", "/nowhere"], "no folder /nowhere"),
    ],
)
def test_what_cannot_work_fails_before_anything_runs(capsys, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    long = '{"prompt": "upper a", "answer": "A"}\n{"prompt": "' + "x" * 5000 + '", "answer": ""}\n'
    Path("long.jsonl").write_text(long)
    Path("strange.jsonl").write_text('{"prompt": "upper \u00e9", "answer": ""}', encoding="utf-8")
    code, out, err = in_process(capsys, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {complaint}") and len(list(tmp_path.iterdir())) == 2


def test_a_plot_without_matplotlib_fails_before_anything_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "find_spec", lambda name: None)
    code, _, err = in_process(capsys, "--tasks", "roman", "--output", tmp_path / "o.csv", "--plot", tmp_path / "o.png")
    assert code == 1 and "--plot needs matplotlib; pip install matplotlib" in err
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", frontier.FORMATS)
def test_plot(tmp_path, suffix):
    grid = parse_grid(["max_denoising_steps=1,2,48", "t_min=0.1,0.2"])
    rows = [
        Row(point, outcome(task, i, i < 2 * k, 2 + 2 * k))
        for task in "abcde"  # ten panels in three rows, two of them empty
        for k, point in enumerate(grid.points())
        for i in range(10)
    ]
    file = tmp_path / f"plot{suffix}"
    frontier.plot(summarise(rows, grid), grid, "title", file)
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert file.read_bytes().startswith(start) and file.stat().st_size > 5000


def test_labels_keep_clear_of_each_other():
    from matplotlib.figure import Figure

    grid = parse_grid(["max_denoising_steps=1,2,3,4,5,6,7,8,9"])
    steps = [80, 80, 81, 81, 81, 82, 82, 82, 400]  # three places next to each other, and one far off
    rows = [Row(point, outcome("t", 0, True, n)) for point, n in zip(grid.points(), steps, strict=True)]
    lines = summarise(rows, grid)
    axes = Figure().subplots()
    frontier._draw(axes, lines, "steps_per_canvas")
    axes.figure.draw_without_rendering()
    frontier._label(axes, lines, grid, "steps_per_canvas")
    texts = [text for text in axes.texts if text.get_text()]
    assert sorted("\n".join(t.get_text() for t in texts).split()) == list("123456789")
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 4 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_of_many_points_only_the_frontiers_have_labels_and_fast_ones_are_triangles():
    from matplotlib.figure import Figure

    grid = Grid({"fast": [False, True], "max_denoising_steps": list(range(1, 11))})
    rows = [
        Row(point, outcome("t", i, i < 5, 1 + number)) for number, point in enumerate(grid.points()) for i in range(9)
    ]
    lines, axes = summarise(rows, grid), Figure().subplots()
    frontier._draw(axes, lines, "work")
    assert [line.get_marker() for line in axes.lines if line.get_marker() in "o^"] == ["o"] * 10 + ["^"] * 10
    frontier._label(axes, lines, grid, "work")
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["False, 1"]


def test_the_questions_for_a_real_checkpoint_are_checkable_and_different():
    asked = read_pairs(Path(__file__).parents[2] / "examples" / "questions.jsonl")
    assert len(asked) >= 40 and len({question.prompt for question in asked}) == len(asked)
    by_start = {question.prompt: question for question in asked}
    assert by_start["What is 17 + 25? Answer with the number only."].check(" 42\n")
    assert not by_start["What is 17 + 25? Answer with the number only."].check("The answer is 42.")
