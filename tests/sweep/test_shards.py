"""A sweep, and an evaluation, in parts: put together they are the run of the whole."""

import csv
import json

import pytest

from mlx_dgemma.demo import evaluate
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.sweep import journal
from mlx_dgemma.sweep.shards import Shard
from tests.sweep.test_sweep import in_process

COMMAND = ["--set", "max_denoising_steps=4,8", "--tasks", "roman", "upper", "--n", "5", "--seed", "3"]
EVALUATE = ["--n", "5", "--tasks", "roman", "spell"]


def without_seconds(path):
    with path.open(newline="") as file:
        return [[*record[:-2], record[-1]] for record in csv.reader(file)]


def figures(table):
    """A table's cells but for the seconds of a generation."""
    return [line.split("|")[:-2] for line in table.splitlines() if line.startswith("| 4") or line.startswith("| 8")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two shards' files."""
    folder = tmp_path_factory.mktemp("shards")
    from mlx_dgemma.sweep.__main__ import main

    paths = [folder / "a.csv", folder / "b.csv"]
    for number, path in enumerate(paths, 1):
        assert main([*COMMAND, "--shard", f"{number}/2", "--output", str(path)]) == 0
    return paths


@pytest.mark.slow
def test_shards_put_together_are_the_run_of_the_whole(capsys, parts, tmp_path):
    whole, together = tmp_path / "whole.csv", tmp_path / "together.csv"
    assert [len(without_seconds(path)) for path in parts] == [1 + 3 * 2 * 2, 1 + 2 * 2 * 2]
    code, wanted, _ = in_process(capsys, *COMMAND, "--output", whole)
    assert code == 0
    code, told, _ = in_process(capsys, *COMMAND, "--output", together, "--merge", *reversed(parts))
    assert code == 0
    assert without_seconds(together) == without_seconds(whole) and figures(told) == figures(wanted) != []
    ours, theirs = (journal.description_file(path).read_bytes() for path in (together, whole))
    assert ours == theirs  # so that --resume and --merge take one for the other


@pytest.mark.slow
def test_what_cannot_be_merged(capsys, parts, tmp_path):
    output, cut = tmp_path / "o.csv", tmp_path / "cut.csv"
    cut.write_bytes(b"".join(parts[0].read_bytes().splitlines(keepends=True)[:-1]))
    journal.description_file(cut).write_bytes(journal.description_file(parts[0]).read_bytes())
    first, second = parts
    for files, more, complaint in (
        ([first], (), "shard 2/2 is missing; give all 2"),
        ([first, first], (), f"{first} and {first} are both shard 1/2"),
        ([cut, second], (), f"{cut} has 11 of 12 generations; finish it with --resume"),
        ([first, tmp_path / "none.csv"], (), "none.csv is no shard"),
        ([first, second], ("--seed", "4"), "belongs to another run: seed is 3 there and 4 here"),
    ):
        code, out, err = in_process(capsys, *COMMAND, *more, "--output", output, "--merge", *files)
        assert code == 1 and complaint in err and len(err.splitlines()) == 1 and out == "", err
        assert not output.exists()


def test_bad_usage(capsys):
    for more, complaint in (
        (["--shard", "0/2"], "--shard '0/2' is none"),
        (["--shard", "3/2"], "--shard '3/2' is none"),
        (["--shard", "1/2", "--merge", "a"], "not allowed with"),
        (["--merge", "a", "--resume"], "--merge has nothing to resume"),
    ):
        code, _, err = in_process(capsys, *COMMAND, *more)
        assert code == 2 and complaint in err and len(err.splitlines()) == 1


def test_every_question_is_in_one_shard():
    for count in (1, 2, 5):
        shards = [Shard.of(f"{number}/{count}") for number in range(1, count + 1)]
        for index in range(20):
            assert sum(shard.takes(index) for shard in shards) == 1
    with pytest.raises(DGemmaError, match="the first of four"):
        Shard.of("1/0")


@pytest.mark.slow
def test_an_evaluation_in_parts(capsys, tmp_path):
    one, two = (str(tmp_path / f"{number}.json") for number in (1, 2))
    assert evaluate.main(EVALUATE) == 0
    whole = capsys.readouterr().out
    for number, path in enumerate((one, two), 1):
        assert evaluate.main([*EVALUATE, "--shard", f"{number}/2", "--output", path]) == 0
    capsys.readouterr()
    assert evaluate.main(["--merge", two, one]) == 0
    assert capsys.readouterr().out == whole
    other = tmp_path / "other.json"
    told = json.loads((tmp_path / "2.json").read_text())
    other.write_text(json.dumps({**told, "asked": {**told["asked"], "seed": 7}}))
    (tmp_path / "none").write_text("[]")
    for files, complaint in (
        ([one], "shard 2/2 is missing"),
        ([one, one], "is there twice"),
        ([one, str(other)], "is of another evaluation than"),
        ([str(tmp_path / "none")], "is no part of an evaluation"),
    ):
        assert evaluate.main(["--merge", *files]) == 1
        err = capsys.readouterr().err
        assert complaint in err and len(err.splitlines()) == 1


def test_counts_add_up():
    a, b = evaluate.Counts(2, 1, 4, 2, 10, 1), evaluate.Counts(2, 2, 8, 2, 6, 2)
    assert (a + b).line("x") == "| x | 75.0 % | 3.0 | 1.3 | 75.0 % | +0.0 |"
    assert (a + evaluate.Counts(2, 2, 8, 2, 6)).line("x").endswith("|  |  |")
