"""The end of a conversion: the renames, killed at each of them, and what is on the disk by then."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from convert import target, write
from convert.target import RECORD, partial_of, replaced_of
from mlx_dgemma.checkpoint.headers import read_header
from tests.convert.conftest import INTERRUPTED, contents, convert, killed_after


@pytest.fixture
def killed_at_rename(capsys, folder, tmp_path, monkeypatch):
    """A conversion with --force of an old target that ends before its rename number `count`; returns the old files."""

    def run(count: int) -> dict[str, bytes]:
        assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", "--dtype", "float16")[0] == 0
        old, real, calls = contents(tmp_path / "t"), os.rename, []

        def dies(*names, **options):
            calls.append(names)
            if len(calls) == count:
                raise KeyboardInterrupt
            real(*names, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", dies)
            assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", "--force")[0] == INTERRUPTED
        monkeypatch.delattr(write, "write_shard")  # from here on nothing is to be written again
        return old

    return run


def test_killed_before_the_first_rename(undisturbed, killed_at_rename, resumed, tmp_path):
    old = killed_at_rename(1)
    assert contents(tmp_path / "t") == old and partial_of(tmp_path / "t").exists()
    resumed("--force")
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


@pytest.mark.parametrize("arguments", [["--resume"], ["--resume", "--force"]])
def test_killed_between_the_renames(capsys, folder, undisturbed, killed_at_rename, tmp_path, arguments):
    old = killed_at_rename(2)
    assert not (tmp_path / "t").exists() and contents(replaced_of(tmp_path / "t")) == old
    code, _, err = convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", *arguments)
    assert code == 0 and "finished already" in err
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


def test_any_later_run_ends_the_renames(capsys, folder, undisturbed, killed_at_rename, tmp_path):
    killed_at_rename(2)
    code, _, err = convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t")
    assert code == 1 and "exists; choose another" in err
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


def test_without_the_new_folder_the_old_target_returns(capsys, folder, undisturbed, killed_at_rename, tmp_path):
    old = killed_at_rename(2)
    shutil.rmtree(partial_of(tmp_path / "t"))
    assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t")[0] == 1
    assert contents(tmp_path) == {f"t/{name}": content for name, content in old.items()}


def test_half_removed_old_targets_go_and_never_return(resumed, undisturbed, tmp_path):
    rest = replaced_of(tmp_path / "t")
    rest.mkdir()
    (rest / "model-00001-of-00002.safetensors").write_text("what rmtree had not come to")
    resumed()
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


def test_the_config_goes_first(capsys, folder, tmp_path, monkeypatch):
    """Killed while it removes the old target; then the new one is deleted by hand: half a model must not come back."""
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
            code = convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", "--force")[0]
    assert code == INTERRUPTED and replaced_of(tmp_path / "t").exists()
    shutil.rmtree(tmp_path / "t")
    assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_what_a_finished_conversion_left_is_removed(capsys, folder, tmp_path, monkeypatch, resumed, undisturbed):
    """Made, begun once more with --force, killed, resumed: the target is what was asked for."""
    resumed()
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", "--force")[0] == INTERRUPTED
    assert partial_of(tmp_path / "t").exists()
    assert "finished already" in resumed()
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names files by Linux's /proc")
def test_all_is_on_the_disk_before_anybody_is_told(capsys, folder, tmp_path, monkeypatch, small_shards):
    """A shard before the record names it, the record before it is renamed, the folder before it takes its name."""
    events = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "pwrite")}

    def recorded(name):
        def call(*arguments, **options):
            if name in ("fsync", "pwrite"):
                path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
                events.append((name, path.name))
                if (name, path.suffix) == ("fsync", ".safetensors"):
                    read_header(path)  # nothing is still in a buffer
            elif Path(arguments[1]).name == RECORD:
                events.append(("record", tuple(json.loads(Path(arguments[0]).read_text())["sha256"])))
            else:
                events.append((name, Path(arguments[1]).name))
            return real[name](*arguments, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, recorded(name))
    assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t")[0] == 0
    shards = sorted(file.name for file in (tmp_path / "t").glob("*.safetensors"))
    assert len(shards) > 5
    for number, shard in enumerate(shards):
        last_write = max(i for i, event in enumerate(events) if event == ("pwrite", shard))
        told = events.index(("record", tuple(shards[: number + 1])))
        assert ("fsync", shard) in events[last_write:told]
    records = [i for i, (name, _) in enumerate(events) if name == "record"]
    assert all(events[i - 1] == ("fsync", f"{RECORD}.new") for i in records)
    renamed = events.index(("rename", "t"))
    synced = {name for event, name in events[records[-1] : renamed] if event == "fsync"}
    assert synced == {*contents(tmp_path / "t"), "t.partial"}
    assert ("fsync", tmp_path.name) in events[renamed:]


def test_a_sync_that_fails(tmp_path, monkeypatch):
    """Some file systems cannot do it for folders; for a file it means that the data may be lost."""

    def fails(descriptor):
        raise OSError(errno.EIO, "cannot sync that")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", fails)
    target.sync(tmp_path)
    with pytest.raises(OSError, match="cannot sync that"):
        target.sync(tmp_path / "file")


def test_what_another_conversion_left_stays(capsys, folder, tmp_path, monkeypatch, resumed, small_shards):
    resumed()
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        arguments = ["--mlx-path", tmp_path / "t", "--force", "--dtype", "float16"]
        assert convert(capsys, "--hf-path", folder, *arguments)[0] == INTERRUPTED
    before = contents(tmp_path)
    assert "finished already" in resumed()
    assert contents(tmp_path) == before
