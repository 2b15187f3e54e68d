"""Going on with a run that ended early: what is trusted, what is not, and what has been finished already."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import plan, write
from convert.recipes import KEEP
from convert.source import open_source
from convert.target import MARGIN, RECORD, partial_of
from mlx_dgemma import load
from tests.checkpoint.test_loading import logits, quantized_folder
from tests.convert.conftest import INTERRUPTED, broken, contents, convert, failing, killed_after


def test_refuses_to_overwrite_and_force_replaces(capsys, to_target, folder, tmp_path):
    target = to_target()
    (target / "mine").write_text("")
    code, _, err = convert(capsys, "--hf-path", folder, "--mlx-path", target)
    assert code == 1 and "exists; choose another --mlx-path, or replace it with --force" in err
    assert (target / "mine").exists()
    to_target("--force", "-q", "--q-group-size", "32")
    assert not (target / "mine").exists() and load(target)
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_a_failure_with_force_leaves_the_old_target(capsys, to_target, folder, tmp_path):
    target = to_target()
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    bad = broken(folder, tmp_path, lambda t: t["model.decoder.norm.weight"].__setitem__(0, np.nan))
    code, _, err = convert(capsys, "--hf-path", bad, "--mlx-path", target, "--force")
    assert code == 1 and "NaN or Inf" in err
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before


def test_disk_space_is_checked_first(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert "has 0.0 GB free, 0.1 GB are needed" in failing(capsys, folder, tmp_path / "t")


def test_a_resumed_run_needs_room_for_the_rest_only(capsys, folder, tmp_path, monkeypatch, resumed, small_shards):
    """What is finished needs none, and what is no use makes some."""
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t")[0] == INTERRUPTED
    partial = partial_of(tmp_path / "t")
    sizes = {name: sum(job.nbytes for job in jobs) for name, jobs in plan_of(folder).files().items()}
    rest = sum(size for name, size in sizes.items() if not (partial / name).exists())
    assert rest < sum(sizes.values()) - 200_000
    (partial / "rubbish").write_bytes(bytes(2**20))
    free = MARGIN + rest - (partial / "rubbish").stat().st_blocks * 512
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, free - 1))
    assert "0.1 GB are needed" in failing(capsys, folder, tmp_path / "t", "--resume")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, free))
    resumed()


def test_a_killed_run_is_resumed(capsys, folder, tmp_path, monkeypatch, model, small_shards):
    target, real, calls = tmp_path / "t", write.write_shard, []

    def dies_at_third(path, jobs, progress):
        calls.append(path.name)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        real(path, jobs, progress)

    monkeypatch.setattr(write, "write_shard", dies_at_third)
    code, _, err = convert(capsys, "--hf-path", folder, "--mlx-path", target)
    assert code == INTERRUPTED and "--resume" in err and not target.exists()
    assert "add --resume" in failing(capsys, folder, target)
    complaint = failing(capsys, folder, target, "--resume", "--dtype", "float16")
    assert "begun with another source or other options" in complaint
    assert convert(capsys, "--hf-path", folder, "--mlx-path", target, "--resume")[0] == 0
    assert calls[3:][0] == calls[2] and len(calls[3:]) == len(list(target.glob("*.safetensors"))) - 2
    assert np.array_equal(logits(load(target, verify=True)[0]), logits(model))
    assert not partial_of(target).exists()


def test_resume_does_not_mix_two_models(capsys, folder, tmp_path, monkeypatch, small_shards):
    twin = shutil.copytree(folder, tmp_path / "twin")
    killed_after(monkeypatch, 2)
    assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t")[0] == INTERRUPTED
    assert "begun with another source" in failing(capsys, twin, tmp_path / "t", "--resume")


@pytest.mark.parametrize("damage", ["gone", "changed", "record"])
def test_resume_trusts_no_leftover(capsys, folder, tmp_path, monkeypatch, undisturbed, damage):
    target = tmp_path / "t"
    killed_after(monkeypatch, 3)
    assert convert(capsys, "--hf-path", folder, "--mlx-path", target)[0] == INTERRUPTED
    first = sorted(partial_of(target).glob("*.safetensors"))[0]
    if damage == "gone":
        first.unlink()
    elif damage == "changed":
        first.write_bytes(first.read_bytes()[:-1] + b"x")
    else:
        (partial_of(target) / RECORD).write_text("[]")
    assert convert(capsys, "--hf-path", folder, "--mlx-path", target, "--resume")[0] == 0
    assert contents(target) == undisturbed


def test_force_trusts_not_even_what_is_right(capsys, folder, tmp_path, monkeypatch, undisturbed):
    target = tmp_path / "t"
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        assert convert(capsys, "--hf-path", folder, "--mlx-path", target)[0] == INTERRUPTED
    written, real = [], write.write_shard
    monkeypatch.setattr(write, "write_shard", lambda path, *rest: (written.append(path.name), real(path, *rest)))
    assert convert(capsys, "--hf-path", folder, "--mlx-path", target, "--force")[0] == 0
    assert written == [name for name in undisturbed if name.endswith(".safetensors")]


def test_force_replaces_nothing_but_a_model_folder(capsys, folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "parent" / "source")
    precious = tmp_path / "t.old"
    precious.mkdir()
    for target, complaint in [
        (source, "holds the source"),
        (source.parent, "holds the source"),
        (precious, "is not a model folder"),
        ("/", "cannot be a target"),
    ]:
        code, _, err = convert(capsys, "--hf-path", source, "--mlx-path", target, "--force")
        assert code == 1 and complaint in err and err.count("\n") == 1
    for _ in range(2):
        assert convert(capsys, "--hf-path", source, "--mlx-path", tmp_path / "t", "--force")[0] == 0
    assert precious.exists() and (source / "config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parent", "t", "t.old"]


def test_resume_with_nothing_to_resume_starts(resumed, undisturbed, tmp_path):
    resumed()
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


def test_resume_of_what_is_finished_is_success(resumed, tmp_path, monkeypatch):
    resumed()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "t").iterdir()}
    monkeypatch.delattr(write, "write_shard")
    assert resumed().splitlines() == [f"{tmp_path / 't'}: finished already, by this same conversion"]
    assert "KL of denoiser logits" in resumed("--force", "--verify")  # the rest of what was asked for is done
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "t").iterdir()} == before


@pytest.mark.parametrize("change", ["options", "source", "shard", "side file", "foreign"])
def test_resume_beside_another_target_is_an_error(capsys, folder, tmp_path, resumed, change):
    copy, to = shutil.copytree(folder, tmp_path / "copy"), tmp_path / "t"
    arguments = ["--hf-path", copy, "--mlx-path", to, "--resume"]
    assert convert(capsys, *arguments)[0] == 0
    if change == "options":
        arguments += ["--dtype", "float16"]
    elif change == "source":
        os.utime(copy / "model.safetensors")
    elif change == "shard":
        (shard,) = to.glob("*.safetensors")
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    elif change == "side file":
        (copy / "chat_template.jinja").write_text("{{ messages }}")
    else:
        (to / RECORD).unlink()
    before = contents(to)
    code, _, err = convert(capsys, *arguments)
    assert code == 1 and err == f"error: {to} exists; choose another --mlx-path, or replace it with --force\n"
    assert contents(to) == before
    assert convert(capsys, *arguments, "--force")[0] == 0 and contents(to) != before
    assert "finished already" in convert(capsys, *arguments)[2]


def test_resume_with_force_starts_again_where_options_changed(
    resumed, tmp_path, undisturbed, capsys, folder, monkeypatch
):
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        assert (
            convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t", "--dtype", "float16")[0] == INTERRUPTED
        )
    resumed("--force")
    assert contents(tmp_path / "t") == undisturbed


def test_leftovers_do_not_get_into_the_result(capsys, folder, tmp_path, monkeypatch, resumed, undisturbed):
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        assert convert(capsys, "--hf-path", folder, "--mlx-path", tmp_path / "t")[0] == INTERRUPTED
    partial = partial_of(tmp_path / "t")
    for name in (f"{RECORD}.new", "model-00003-of-00099.safetensors", "README.md"):
        (partial / name).write_text("half")
    (partial / "folder").mkdir()
    record = json.loads((partial / RECORD).read_text())
    record["sha256"]["notes.txt"] = hashlib.sha256(b"mine").hexdigest()  # right, but no shard
    (partial / "notes.txt").write_bytes(b"mine")
    (partial / RECORD).write_text(json.dumps(record))
    resumed()
    assert contents(tmp_path) == {f"t/{name}": content for name, content in undisturbed.items()}


@pytest.mark.parametrize("option", ["--resume", "--force"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_only_a_conversions_own_leftovers_are_replaced(capsys, folder, tmp_path, option, is_folder):
    partial = partial_of(tmp_path / "t")
    if is_folder:
        partial.mkdir()
    (partial / "thesis" if is_folder else partial).write_text("years of work")
    complaint = failing(capsys, folder, tmp_path / "t", option)
    assert complaint == f"error: {partial} is not what a conversion leaves; move it away"
    assert contents(tmp_path).popitem()[1] == b"years of work"


def test_an_empty_partial_folder_is_resumed(resumed, tmp_path):
    partial_of(tmp_path / "t").mkdir()
    resumed()


def plan_of(folder: Path) -> plan.Plan:
    """The plan of a conversion that changes nothing."""
    return plan.make_plan(open_source(folder), ((".*", KEEP),))


def test_resume_knows_versions_and_layout(folder, monkeypatch):
    prints, made = set(), plan_of(folder)
    for owner, name, value in (
        (plan, "SHARD_BYTES", 0),  # the default is bound already: no change
        (plan.Plan.shards, "__defaults__", (100_000,)),
        (plan, "version", lambda package: "0.99"),
        (plan, "__version__", "0.0.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            prints.add(made.fingerprint())
    assert len(prints) == 4 and made.fingerprint() in prints


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_resume_knows_every_file_of_a_quantized_source(folder, tmp_path, part):
    source = quantized_folder(folder, tmp_path / "q")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    for kind in ("weight", "scales", "biases", "layer_scalar", "scale", "per_expert_scale"):
        save_file({n: t for n, t in tensors.items() if n.endswith(f".{kind}")}, source / f"{kind}.safetensors")
    before = plan_of(source).fingerprint()
    assert plan_of(source).fingerprint() == before
    os.utime(source / f"{part}.safetensors")
    assert plan_of(source).fingerprint() != before
