"""Dry runs: what the published checkpoint comes to under each recipe, told in 80 columns."""

import re
from pathlib import Path

import pytest

from benchmarks import recipes
from convert.__main__ import build_parser
from convert.recipes import ABOUT, RECIPES
from convert.summary import notes
from tests.convert.conftest import contents, convert


@pytest.fixture
def dry_run(capsys, hollow):
    """The rows of a dry run on the published checkpoint."""

    def run(*arguments: object) -> list[str]:
        code, out, err = convert(capsys, "--hf-path", hollow, "--dry-run", *arguments)
        assert (code, err) == (0, "")
        return out.splitlines()

    return run


@pytest.mark.parametrize(
    ("arguments", "tensors", "nbytes", "files"),
    [
        (["--recipe", "mlx-community"], "1,647", "16,542,844,632", 4),
        ([], "1,047", "51,647,562,456", 11),
        (["-q"], "1,167", "18,817,958,616", 4),
        (["--recipe", "8bit"], "1,645", None, 6),
        (["--recipe", "small"], "1,645", None, 3),
    ],
)
def test_plans_of_the_published_checkpoint(dry_run, arguments, tensors, nbytes, files):
    rows = dry_run(*arguments)
    assert len(rows) < 24 and max(map(len, rows)) <= 80  # a terminal's screen
    assert re.fullmatch(rf"{tensors} tensors, {nbytes or '[0-9,]+'} bytes, {files} files", rows[-1])
    verbose = dry_run(*arguments, "--verbose")
    named = {line.split("  ")[0] for line in verbose if "  from " in line}
    assert len(named) == int(tensors.replace(",", ""))
    assert verbose[-len(rows) :] == rows


def test_the_summary_of_the_default_recipe(dry_run):
    rows = dry_run("-q")
    table = {row[:18].rstrip(): row[18:].split() for row in rows[1 : rows.index("")]}
    assert list(table) == [
        "experts", "attention", "embedding", "dense MLP", "self-conditioning", "router", "vision", "norms and scalars",
        "in all",
    ]  # fmt: skip
    assert rows[0].split("  ")[-1].strip() == "GB"
    assert table["experts"] == ["22,837,985,280", "4.50", "12.846"]
    assert table["embedding"] == ["738,197,504", "16.00", "1.476"]
    weights = [int(row[0].replace(",", "")) for row in table.values()]
    assert sum(weights[:-1]) == weights[-1] and table["in all"][1:] == ["5.83", "18.818"]
    assert "memory to run: 18.3 GB (text weights, 8,192 tokens of prefix, workspace)" in rows
    assert "images add: 2.3 GB (the vision tower in float32, from the first image on)" in rows
    assert "fits a Mac with: 32 GB" in rows


def test_the_benchmarks_table_has_what_dry_runs_say(dry_run, capsys):
    recipes.main()
    printed = capsys.readouterr().out.splitlines()[2:]
    assert printed[0] == "| `experts-4bit` | 5.83 | 18.8 GB | 18.3 GB | 32 GB |"
    for name, row in zip(RECIPES, printed, strict=False):
        rows = dry_run("--recipe", name)
        bits = next(row for row in rows if row.startswith("in all")).split()[3]
        size = int(rows[-1].split()[2].replace(",", "")) / 1e9
        told = dict(row.split(": ", 1) for row in rows if ": " in row)
        memory, mac = told["memory to run"].split(" (")[0], told["fits a Mac with"]
        assert row == f"| `{name}` | {bits} | {size:.1f} GB | {memory} | {mac} |"


def test_the_small_recipe_leaves_room_below_16_gb(dry_run):
    nbytes = int(re.search(r"tensors, ([\d,]+) bytes", dry_run("--recipe", "small")[-1])[1].replace(",", ""))
    assert 14e9 < nbytes < 15e9


def test_groups_that_do_not_fit_fall_back_and_say_so(dry_run):
    arguments = ["--recipe", "uniform", "--q-group-size", 128]
    rows = dry_run(*arguments)
    assert max(map(len, rows)) <= 80
    assert [row for row in rows if row.startswith("note: ")] == [
        "note: 30 × layers.*.experts.down_proj gets groups of 64: 128 does not divide 704",
        "note: 30 × layers.*.mlp.down_proj gets groups of 64: 128 does not divide 2112",
        "note: self_conditioning.down_proj gets groups of 64: 128 does not divide 2112",
    ]
    every = [line for line in dry_run(*arguments, "--verbose") if line.startswith("note: model.")]
    assert "note: model.decoder.layers.0.experts.down_proj gets groups of 64: 128 does not divide 704" in every
    assert "note: model.decoder.layers.0.mlp.down_proj gets groups of 64: 128 does not divide 2112" in every
    assert len(every) == 30 + 30 + 1  # experts, dense MLP, self-conditioning


def test_a_conversion_says_the_same(capsys, folder, tmp_path):
    arguments = ["--hf-path", folder, "--recipe", "uniform"]  # groups of 64 do not divide 32 and 96
    _, out, _ = convert(capsys, *arguments, "--dry-run")
    code, _, err = convert(capsys, *arguments, "--mlx-path", tmp_path / "t")
    assert code == 0
    told = [line for line in out.splitlines() if line.startswith("note: ")]
    assert told and told == [line for line in err.splitlines() if line.startswith("note: ")]
    _, _, err = convert(capsys, *arguments, "--mlx-path", tmp_path / "t", "--force", "--verbose")
    assert "model.decoder.norm.weight  F32 64  256 bytes  unquantized, as it is  from model.decoder.norm.weight" in err


def test_small_models_are_counted_in_megabytes(capsys):
    from mlx_dgemma.checkpoint.loading import EMBEDDED

    _, out, _ = convert(capsys, "--hf-path", EMBEDDED, "--dry-run", "-q")
    assert out.splitlines()[0].endswith("MB") and "2.790" in out and "fits a Mac with: 16 GB" in out
    assert "images add" not in out
    assert out.splitlines()[-1] == "182 tensors, 2,790,200 bytes, 1 file"


def test_notes_that_differ_in_the_layer_alone_are_one():
    texts = [f"model.decoder.layers.{i}.mlp.down_proj gets groups of 64" for i in range(11)]
    assert list(notes([*texts, "model.encoder.x stays"])) == [
        "note: 11 × layers.*.mlp.down_proj gets groups of 64",
        "note: model.encoder.x stays",
    ]


def test_help_says_what_each_recipe_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = build_parser().format_help()
    assert list(ABOUT) == list(RECIPES)
    assert all(f"  {name:14} {about}\n" in text for name, about in ABOUT.items())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("option", ["--hf-path", "--model"])
def test_a_home_folder_in_both_paths(capsys, folder, tmp_path, monkeypatch, equals, option):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "s").symlink_to(folder)
    pairs = [(option, "~/s"), ("--mlx-path", "~/t")]
    arguments = ["=".join(pair) for pair in pairs] if equals else [text for pair in pairs for text in pair]
    monkeypatch.chdir(tmp_path)
    assert convert(capsys, *arguments)[0] == 0
    assert (tmp_path / "t" / "config.json").is_file() and not Path("~").exists()


def test_a_home_folder_of_nobody(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = convert(capsys, "--hf-path=~nobody-of-that-name/x", "--mlx-path", tmp_path / "t")
    assert code == 1 and err.startswith("error: no folder ~nobody-of-that-name/x") and err.count("\n") == 1
    assert convert(capsys, "--hf-path", folder, "--mlx-path=~nobody-of-that-name/t")[0] == 0
    assert "~nobody-of-that-name/t/config.json" in contents(tmp_path)
