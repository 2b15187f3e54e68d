"""Ranks agree before they begin, and end together."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.trace.trace import Trace
from tests.distributed.ranks import end_ranks, run_ranks, start_ranks

GENERATE = ["-m", "mlx_dgemma.generate", "--distributed"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "rank 1 has died"),
        ("hangs", "rank 1 has not been heard of"),
        ("is interrupted", "rank 1 was interrupted"),
        ("fails", "rank 1 failed: no more paper"),
        ("closes", "rank 1 has"),
    ],
)
def test_one_that_ends_ends_the_others(how, said, tmp_path):
    ranks = start_ranks(2, ["-m", "tests.distributed.ending", how], tmp_path)
    try:
        for rank in ranks:
            assert rank.stdout.readline() == "began\n", rank.stderr.read()
        began = time.monotonic()
        first = end_ranks(ranks[:1], timeout=30)[0]
        seconds = time.monotonic() - began
    finally:
        ranks[1].send_signal(signal.SIGCONT)
        ranks[1].kill()
    assert first.code == 1 and seconds < 12, (first, seconds)
    lines = [line for line in first.err.splitlines() if line and not line.startswith("[ring]")]  # which is MLX
    assert len(lines) == 1 and lines[0].startswith("error: "), first.err
    assert said in lines[0] or "rank 1 has stopped" in lines[0], first.err


def test_what_is_written_together_is_what_one_writes(tmp_path):
    """Only the first rank speaks, and writes files."""
    alone, shared = tmp_path / "alone.npz", tmp_path / "shared.npz"
    arguments = ["--seed", "3", "count 18 to 50"]
    one = run_ranks(1, [*GENERATE, *arguments, "--trace", str(alone)], tmp_path)[0]
    first, second = run_ranks(2, [*GENERATE, *arguments, "--trace", str(shared)], tmp_path)
    assert one.code == first.code == second.code == 0, first.err + second.err
    assert "only process" in one.err
    assert first.out == one.out != "" and (second.out, second.err) == ("", "")
    assert "2 ranks: a step takes" in first.err and "GB/s" in first.err
    ours, theirs = Trace.load(shared), Trace.load(alone)
    for name in ("draft", "entropy", "canvas"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_stdin_is_that_of_the_first(tmp_path):
    ranks = start_ranks(2, [*GENERATE, "--quiet", "-p", "-"], tmp_path)
    ranks[0].stdin.write("roman 1994\n")
    ranks[0].stdin.close()
    ranks[0].stdin = None
    first, second = end_ranks(ranks)
    assert (first.code, first.out) == (0, "MCMXCIV\n"), first.err
    assert (second.code, second.out) == (0, ""), second.err


def test_another_checkpoint_is_refused_by_name(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(EMBEDDED, other)
    config = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps({**config, "max_denoising_steps": 7}))
    ranks = start_ranks(2, ["-m", "tests.distributed.apart", str(EMBEDDED), str(other)], tmp_path)
    for ended in end_ranks(ranks):
        assert ended.code == 1 and ended.out == ""
        assert ended.err.startswith("error: rank 1 has another generation_config.json than rank 0"), ended.err


def test_another_seed_is_refused_by_name(tmp_path):
    ranks = start_ranks(2, ["-m", "tests.distributed.apart", "--seed", "1", "2"], tmp_path)
    for ended in end_ranks(ranks):
        assert ended.code == 1 and ended.out == ""
        last = ended.err.splitlines()[-1]  # behind a warning, where the machine is busy
        assert last.startswith("error: rank 1 has another seed than rank 0 (2, not 1)"), ended.err


@pytest.mark.parametrize("shares", ["1", "1,2,3", "0,1", "a,b", "1,2000"])
def test_shares_that_are_none(shares, tmp_path):
    for ended in run_ranks(2, [*GENERATE, "--quiet", "--shares", shares, "roman 7"], tmp_path):
        assert ended.code in (1, 2) and ended.err.startswith("error: ") and "shares" in ended.err
        assert len(ended.err.strip().splitlines()) == 1


def test_many_prompts_and_where_they_are_gone_on_with(tmp_path):
    """The first rank knows what is there already."""
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    asked.write_text("".join(json.dumps(f"roman {n}") + "\n" for n in (1994, 2024)))
    command = [*GENERATE, "--quiet", "--prompts", str(asked), "--output", str(answers)]
    one, _ = run_ranks(2, command, tmp_path)
    assert one.code == 0, one.err
    asked.write_text("".join(json.dumps(f"roman {n}") + "\n" for n in (1994, 2024, 3888)))
    one, other = run_ranks(2, [*command, "--resume"], tmp_path)
    assert (one.code, other.code) == (0, 0), one.err + other.err
    texts = [json.loads(line)["text"] for line in answers.read_text().splitlines()]
    assert sorted(texts) == sorted(["MCMXCIV", "MMXXIV", "MMMDCCCLXXXVIII"])


def test_a_step_that_is_shared_can_be_measured(tmp_path):
    command = ["-m", "mlx_dgemma.bench", "--distributed", "--repeat", "1", "--steps", "3", "--json"]
    one, other = run_ranks(2, command, tmp_path)
    assert (one.code, other.code, other.out) == (0, 0, ""), one.err + other.err
    report = json.loads(one.out)
    assert len(report["ranks"]["alone"]) == 2 and report["ranks"]["shared"] > 0 < report["step_ms"]


def test_a_sweep_that_is_gone_on_with(tmp_path):
    output = tmp_path / "o.csv"
    command = ["-m", "mlx_dgemma.sweep", "--distributed", "--set", "max_denoising_steps=4,8", "--tasks", "roman"]
    command += ["--n", "3", "--output", str(output)]
    one, other = run_ranks(2, command, tmp_path)
    assert (one.code, other.code, other.out, other.err) == (0, 0, "", ""), one.err
    whole = output.read_text()
    output.write_text("".join(whole.splitlines(keepends=True)[:4]))
    one, other = run_ranks(2, [*command, "--resume"], tmp_path)
    assert (one.code, other.code) == (0, 0) and len(output.read_text().splitlines()) == len(whole.splitlines())
    one, other = run_ranks(2, [*command, "--resume"], tmp_path)  # there is nothing left to do
    assert (one.code, other.code) == (0, 0) and "6 generations" in one.err
