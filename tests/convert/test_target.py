"""Where a target may lie, and one converter at a time."""

import errno
import fcntl
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convert.target import partial_of, replaced_of
from tests.convert.conftest import ROOT, contents, convert, failing


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("path", ["out", "deep/er/out", "../link/out", "../source/out", "sub/../out"])
def test_a_target_inside_the_source(capsys, folder, tmp_path, path, force):
    source = shutil.copytree(folder, tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    before = contents(tmp_path)
    for spelled in (source, tmp_path / "link"):
        complaint = failing(capsys, spelled, spelled / path, "--resume", *force)
        assert "is inside the source's folder; choose another --mlx-path" in complaint
    assert contents(tmp_path) == before and not (source / "deep").exists()


@pytest.mark.parametrize("path", ["m/source", "m", "link", "link/source", "back", "m/../m/source/../source"])
def test_a_source_inside_the_target(capsys, folder, tmp_path, path):
    source = shutil.copytree(folder, tmp_path / "m" / "source")
    shutil.copy(source / "config.json", source.parent)
    (tmp_path / "link").symlink_to(source.parent)
    (tmp_path / "back").symlink_to(source)
    before = contents(tmp_path)
    code, _, err = convert(capsys, "--hf-path", source, "--mlx-path", tmp_path / path, "--force")
    assert code == 1 and "holds the source; choose another --mlx-path" in err and err.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", [partial_of, replaced_of])
def test_a_source_where_the_converter_works(capsys, folder, tmp_path, place):
    source = shutil.copytree(folder, place(tmp_path / "t"))
    assert "holds the source" in failing(capsys, source, tmp_path / "t", "--force")
    assert contents(source) == contents(folder)


def test_a_source_of_links_into_the_target(capsys, folder, tmp_path):
    real, source = shutil.copytree(folder, tmp_path / "t"), tmp_path / "source"
    source.mkdir()
    shutil.copy(real / "config.json", source)
    (source / "model.safetensors").symlink_to(real / "model.safetensors")
    code, _, err = convert(capsys, "--hf-path", source, "--mlx-path", real, "--force")
    assert code == 1 and "holds the source" in err
    assert contents(real) == contents(folder)


def test_a_target_that_is_a_link_stays_one(capsys, folder, tmp_path, undisturbed):
    real = tmp_path / "disk" / "real"
    real.parent.mkdir()
    (tmp_path / "t").symlink_to(real)
    for arguments in ([], ["--force"]):
        assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", *arguments)[0] == 0
        assert (tmp_path / "t").is_symlink() and contents(real) == undisturbed
    assert sorted(p.name for p in tmp_path.rglob("*.*") if p.parent != real) == []


# One at a time

PAUSED = """
import sys
from convert import __main__, plan, write
plan.Plan.shards.__defaults__ = (100_000,)
real, calls = write.write_shard, []
def paused(path, jobs, progress):
    calls.append(path)
    if len(calls) == 3:
        print("half", flush=True)
        sys.stdin.readline()
    real(path, jobs, progress)
write.write_shard = paused
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.fixture
def half_way(folder, tmp_path):
    """Another process's conversion that waits in its third shard."""
    command = [sys.executable, "-c", PAUSED, "--hf-path", folder, "--mlx-path", tmp_path / "t"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "half\n"
        yield process
        process.kill()


@pytest.mark.parametrize("arguments", [[], ["--resume"], ["--force"], ["--resume", "--force"]])
def test_two_conversions_of_one_target(capsys, folder, tmp_path, undisturbed, half_way, arguments):
    before = contents(tmp_path)
    complaint = failing(capsys, folder, tmp_path / "t", *arguments)
    assert (
        complaint == f"error: another conversion is writing {tmp_path / 't'}; wait for it, or choose another --mlx-path"
    )
    assert contents(tmp_path) == before
    assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "u")[0] == 0  # another target is free
    half_way.stdin.write("go on\n")
    half_way.stdin.flush()
    assert half_way.wait(60) == 0
    assert contents(tmp_path / "t") == undisturbed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t", "u"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_dies_with_its_process(resumed, tmp_path, undisturbed, half_way, how):
    half_way.send_signal(how)
    half_way.wait(60)
    resumed()
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


def test_a_lock_whose_file_went_away_meanwhile(capsys, folder, tmp_path, monkeypatch):
    """The holder ended between our opening of the file and our locking of it: a third may hold a new one."""
    real = fcntl.flock

    def late(file, how):
        Path(file.name).unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert "another conversion is writing" in failing(capsys, folder, tmp_path / "t")


def test_a_file_system_without_locks(resumed, tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    resumed()
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
