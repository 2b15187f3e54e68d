"""Writing shards: where tensors lie, what is refused, what progress says."""

import json
import os
import struct

import mlx.core as mx

from mlx_dgemma.checkpoint.headers import BYTES, read_headers
from tests.convert.conftest import INTERRUPTED, convert, failing, killed_after


def test_tensors_are_aligned(to_target):
    """As the safetensors library writes them: the data begins at a multiple of 8, wide types come first."""
    target = to_target("--recipe", "uniform", "--q-group-size", "32", "--dtype", "float16", "--override", "q_proj=3:32")
    infos = read_headers(target).values()
    assert {info.dtype for info in infos} == {"U32", "F16"}
    assert all(info.offset % BYTES[info.dtype] == 0 for info in infos)
    for file in target.glob("*.safetensors"):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        assert length % 8 == 0 and json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "mlx"}


def test_a_write_that_is_cut_short(capsys, folder, tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: real(file, data[: len(data) // 2], place))
    complaint = failing(capsys, folder, tmp_path / "t")
    assert "model.decoder.embed_tokens.weight: 15360 bytes written of 30720; is the disk full?" in complaint


def test_a_full_disk_is_one_line(capsys, folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert failing(capsys, folder, tmp_path / "t") == "error: [Errno 28] No space left on device"


def test_packed_tensors_with_nan_are_named(capsys, to_target, tmp_path):
    """Integer scales that stand for NaN, in modules that are copied as they are."""
    source = to_target("--recipe", "uniform", "--q-mode", "nvfp4").rename(tmp_path / "source")
    (shard,) = source.glob("*.safetensors")
    tensors, name = mx.load(str(shard)), "model.decoder.layers.0.self_attn.q_proj"
    tensors[f"{name}.scales"][3, 1] = 0x7F  # NaN in the E4M3 format
    mx.save_safetensors(str(shard), tensors)
    complaint = failing(capsys, source, tmp_path / "t", "-q", "--q-group-size", "32")
    assert f"tensor {name}.weight has NaN or Inf" in complaint


def test_progress_ends_at_the_whole(capsys, folder, tmp_path, monkeypatch, small_shards):
    """In tenths, also where a part of the work was done before."""
    arguments = ["--hf-path", folder, "--mlx-path", tmp_path / "t", "--resume"]
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        code, _, err = convert(capsys, *arguments)
    assert code == INTERRUPTED and "converted 0.002 of" not in err
    for extra in ([], ["--force", "--dtype", "float16"]):
        code, _, err = convert(capsys, *arguments, *extra)
        lines = [line for line in err.splitlines() if line.startswith("converted ")]
        assert code == 0 and 5 < len(lines) <= 11
        done, whole = lines[-1].removeprefix("converted ").removesuffix(" GB").split(" of ")
        assert done == whole
