"""Headers: every byte belongs to one tensor, every tensor to one file, every file to the folder."""

import json
import shutil
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from mlx_dgemma import DGemmaError, load
from mlx_dgemma.checkpoint.headers import by_target, read_header, read_headers, shard_files
from tests.checkpoint.test_loading import logits, one_line

INDEX = "model.safetensors.index.json"


def write_file(path: Path, offsets: dict[str, tuple[int, int]], size: int, **shapes: list[int]) -> Path:
    """Bytes as tensors, at these offsets, in a data section of `size` bytes."""
    header = {
        name: {"dtype": "U8", "shape": shapes.get(name, [end - begin]), "data_offsets": [begin, end]}
        for name, (begin, end) in offsets.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


def complaint(path: Path) -> str:
    with pytest.raises(DGemmaError) as error:
        read_header(path)
    text = one_line(error)
    assert text.startswith(str(path))
    return text


@pytest.mark.parametrize(
    ("offsets", "size", "fault"),
    [
        ({"a": (0, 8), "b": (4, 12)}, 12, "b overlaps a"),
        ({"a": (0, 8), "b": (0, 8)}, 8, "b overlaps a"),
        ({"a": (0, 12), "b": (4, 8)}, 12, "b overlaps a"),
        ({"a": (8, 16), "b": (0, 9)}, 16, "a overlaps b"),
        ({"a": (0, 8), "b": (4, 4)}, 8, "b overlaps a"),
        ({"a": (0, 8), "b": (12, 16)}, 16, "b begins 4 bytes after a"),
        ({"a": (4, 8)}, 8, "a begins 4 bytes after the header"),
        ({"a": (0, 8)}, 11, "its last 3 bytes belong to no tensor"),
        ({}, 1, "its last 1 bytes belong to no tensor"),
    ],
)
def test_tensors_tile_the_file(tmp_path, offsets, size, fault):
    path = write_file(tmp_path / "model.safetensors", offsets, size)
    assert fault in complaint(path)
    with pytest.raises(SafetensorError):  # the reference library draws the same line
        load_file(path)


def test_tensors_in_any_order_and_empty_ones(tmp_path):
    offsets = {"b": (4, 8), "none": (4, 4), "a": (0, 4), "nothing": (8, 8)}
    infos = read_header(write_file(tmp_path / "model.safetensors", offsets, 8, none=[0, 3]))
    assert list(infos) == list(offsets)
    assert infos["b"].offset - infos["a"].offset == 4 and infos["none"].shape == (0, 3)
    assert read_header(write_file(tmp_path / "none.safetensors", {}, 0)) == {}


def test_what_the_libraries_write_passes(tmp_path):
    arrays = {
        "odd": np.ones(3, np.uint8), "empty": np.zeros((0, 4), np.float32), "scalar": np.array(2, np.float32),
        "half": np.ones(5, np.float16), "wide": np.ones((2, 3), np.int64),
    }  # fmt: skip
    save_file(arrays, tmp_path / "numpy.safetensors", metadata={"format": "np"})
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    save_torch({**tensors, "brain": torch.ones(7, dtype=torch.bfloat16)}, tmp_path / "torch.safetensors")
    ours = {name: mx.array(array) for name, array in arrays.items()}
    mx.save_safetensors(str(tmp_path / "mlx.safetensors"), {**ours, "brain": mx.ones(7, mx.bfloat16)})
    for name in ("numpy", "torch", "mlx"):
        infos = read_header(tmp_path / f"{name}.safetensors")
        assert {n: infos[n].shape for n in arrays} == {n: a.shape for n, a in arrays.items()}


def test_one_name_twice_in_a_header(tmp_path):
    entry = '"a": {"dtype": "U8", "shape": %s, "data_offsets": [0, 4]}'
    text = f"{{{entry % [4]}, {entry % [2, 2]}}}".encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert "is not a safetensors file" in complaint(path)


def test_overlapping_weights_are_not_loaded(folder, tmp_path):
    """Two norms that share their bytes: the text would be noise."""
    path = shutil.copytree(folder, tmp_path / "copy") / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    norms = [f"model.decoder.layers.{i}.input_layernorm.weight" for i in range(2)]
    header[norms[1]]["data_offsets"] = header[norms[0]]["data_offsets"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(DGemmaError) as error:
        load(path.parent)
    assert f"{norms[1]} overlaps {norms[0]}; download it again" in one_line(error)


@pytest.mark.parametrize("index", [True, False])
def test_a_tensor_in_two_files_names_both(tmp_path, index):
    for name in ("a", "b"):
        write_file(tmp_path / f"{name}.safetensors", {"norm": (0, 4), name: (4, 6)}, 6)
    if index:
        weights = {"norm": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(DGemmaError) as error:
        read_headers(tmp_path)
    assert f"{tmp_path / 'b.safetensors'}: tensor norm is in a.safetensors too" in one_line(error)


def test_a_weight_under_both_of_its_names(tmp_path):
    name = "model.decoder.layers.0.experts.down_proj"
    infos = read_header(write_file(tmp_path / "x.safetensors", {name: (0, 4), f"{name}.weight": (4, 8)}, 8))
    with pytest.raises(DGemmaError) as error:
        by_target(infos)
    assert f"{name}.weight and {name} of x.safetensors are one weight" in one_line(error)


@pytest.fixture
def beside(tmp_path):
    """A folder with an index to fill in, and a checkpoint beside it that must stay out of reach."""
    write_file(tmp_path / "model.safetensors", {"a": (0, 4)}, 4)
    (tmp_path / "other").mkdir()
    (tmp_path / "here" / "sub").mkdir(parents=True)
    for folder in ("other", "here", "here/sub"):
        shutil.copy(tmp_path / "model.safetensors", tmp_path / folder)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "other")
    return tmp_path / "here"


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors", "../other/model.safetensors", "./model.safetensors", "sub/model.safetensors",
        "sub/../../model.safetensors", "link/model.safetensors", "..", ".", "", "/etc/passwd", "~/model.safetensors",
        "..\\model.safetensors", "C:model.safetensors", "file:model.safetensors", "model.safetensors\n",
        "model.safetensors/", "\nmodel.safetensors", "model\0.safetensors", "model.safetensors\0", "model*.safetensors",
        "[m]odel.safetensors", "model．safetensors", "..／model.safetensors", "model.bin", None, 3,
    ],
)  # fmt: skip
def test_an_index_names_files_of_its_folder_only(beside, name):
    for weights in ({"a": name}, {"a": "model.safetensors", "b": name}):
        (beside / INDEX).write_text(json.dumps({"weight_map": weights}))
        with pytest.raises(DGemmaError) as error:
            shard_files(beside)
        assert f"{INDEX} names {name!r}, which is no .safetensors file beside it" in one_line(error)


def test_an_absolute_path_in_an_index(beside):
    outside = beside.parent / "other" / "model.safetensors"
    (beside / INDEX).write_text(json.dumps({"weight_map": {"a": str(outside)}}))
    with pytest.raises(DGemmaError, match=r"no \.safetensors file beside it"):
        shard_files(beside)


def test_files_of_the_hubs_cache_are_links(folder, model, tmp_path):
    """snapshots/COMMIT/NAME points to blobs/HASH: links in the folder are followed, that is how downloads look."""
    snapshot, blobs = tmp_path / "snapshots" / ("0" * 40), tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert np.array_equal(logits(load(snapshot)[0]), logits(model))
