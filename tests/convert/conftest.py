"""The converter's command line inside the test's own process, and what it converts."""

import csv
import json
import shutil
import signal
import struct
from pathlib import Path

import numpy as np
import pytest

from convert import write
from convert.__main__ import main
from convert.plan import Plan
from mlx_dgemma.checkpoint.headers import BYTES
from tests.checkpoint.test_loading import edit_tensors

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parents[1] / "data"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # of an interrupted run
INTERRUPTED = CODES[signal.SIGINT]


@pytest.fixture(scope="session")
def hollow(tmp_path_factory):
    """The published checkpoint without its 52 GB: real headers, sparse data."""
    folder = tmp_path_factory.mktemp("hollow")
    shutil.copy(DATA / "config.json", folder)
    shards: dict[str, dict] = {}
    with (DATA / "tensors.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            shape = [int(n) for n in row["shape"].split(",")]
            header = shards.setdefault(row["shard"], {})
            start = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            end = start + BYTES[row["dtype"]] * int(np.prod(shape))
            header[row["name"]] = {"dtype": row["dtype"], "shape": shape, "data_offsets": [start, end]}
    for name, header in shards.items():
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + max(entry["data_offsets"][1] for entry in header.values()))
    return folder


def convert(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def to_target(capsys, folder, tmp_path):
    """Converts the random checkpoint (or `source`) and returns the target."""

    def run(*arguments, source=None):
        target = tmp_path / "target"
        code, _, err = convert(capsys, "--hf-path", source or folder, "--mlx-path", target, *arguments)
        assert code == 0, err
        return target

    return run


def failing(capsys, source, target, *arguments) -> str:
    """The complaint of a conversion that must fail and leave nothing under the target's name."""
    code, out, err = convert(capsys, "--hf-path", source, "--mlx-path", target, *arguments)
    assert (code, out) == (1, "")
    assert not target.exists()
    complaint = err.strip().splitlines()[-1]
    assert complaint.startswith("error: ")
    return complaint


def broken(folder, tmp_path, change) -> Path:
    copy = shutil.copytree(folder, tmp_path / "broken")
    edit_tensors(copy, change)
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by path in it."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 100 kB: the random checkpoint takes twelve of them."""
    monkeypatch.setattr(Plan.shards, "__defaults__", (100_000,))


@pytest.fixture
def resumed(capsys, folder, tmp_path):
    """Runs --resume to its end; returns stderr."""

    def run(*arguments: object) -> str:
        code, _, err = convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", "--resume", *arguments)
        assert code == 0, err
        return err

    return run


@pytest.fixture
def undisturbed(capsys, folder, tmp_path, small_shards):
    """What a run without interruptions makes, by file name."""
    assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "undisturbed" / "t")[0] == 0
    files = contents(tmp_path / "undisturbed" / "t")
    shutil.rmtree(tmp_path / "undisturbed")
    return files


def killed_after(monkeypatch, shards: int) -> None:
    """Makes the next conversion stop after so many shards."""
    real, calls = write.write_shard, []

    def dies(path, jobs, progress):
        calls.append(path)
        if len(calls) == shards + 1:
            raise KeyboardInterrupt
        real(path, jobs, progress)

    monkeypatch.setattr(write, "write_shard", dies)
