"""A rank's part of a checkpoint: the slices of what is read whole, few bytes read, and about 1/N of them held."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.checkpoint import parts
from mlx_dgemma.checkpoint.headers import read_headers
from mlx_dgemma.checkpoint.loading import load
from mlx_dgemma.checkpoint.parts import read_part
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.cut import Slice
from tests.distributed.published import write_published
from tests.distributed.threads import in_threads


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def count(monkeypatch):
    """How many bytes are read of files, in a list."""
    read, make = [0], parts._reader

    def counting(stream, info):
        inner = make(stream, info)

        def reader(into, start):
            read[0] += into.nbytes
            inner(into, start)

        return reader

    monkeypatch.setattr(parts, "_reader", counting)
    return read


@pytest.mark.parametrize(("together", "block"), [(0, 1 << 20), (1 << 30, 1), (1 << 30, 1 << 20)])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.uint32, mx.uint8])
def test_a_part_is_a_slice_of_the_whole(together, block, dtype, tmp_path, monkeypatch, count):
    monkeypatch.setattr(parts, "TOGETHER", together)
    monkeypatch.setattr(parts, "BLOCK", block)
    whole = mx.array(np.random.default_rng(0).integers(0, 200, (6, 10, 12))).astype(dtype)
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"x": whole, "scalar": whole[0, 0, :1]})
    headers = read_headers(tmp_path)
    assert mx.array_equal(read_part(headers["x"], None), whole)
    assert mx.array_equal(read_part(headers["scalar"], None), whole[0, 0, :1])
    for axis in range(3):
        part = Slice(axis, (range(1, 2), range(4, 6)), whole.shape[axis])
        count[0] = 0
        got, rows = read_part(headers["x"], part), mx.array([1, 4, 5])
        assert got.dtype == dtype and mx.array_equal(got, mx.take(whole, rows, axis=axis))
        assert count[0] == (got.nbytes if axis == 0 or not together else whole.nbytes)


def test_a_file_that_was_cut_short_meanwhile_is_one_line(tmp_path):
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"x": mx.zeros((4, 4))})
    info = read_headers(tmp_path)["x"]
    with pytest.raises(DGemmaError, match="truncated: x"):
        read_part(replace(info, offset=info.offset + 8), None)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["floats", "4 bits, attention 8"])
def test_a_rank_reads_and_holds_about_its_share(published, name, size, monkeypatch, count):
    """Where every piece is read by itself. What is whole everywhere is most of what exceeds a share."""
    monkeypatch.setattr(parts, "TOGETHER", 0)
    whole = load(published[name])[0]
    models = in_threads(size, lambda ranks: load(published[name], ranks=ranks)[0])
    held = [sum(own.nbytes for own in model.tensors().values()) for model in models]
    replicated = sum(
        own.nbytes for path, own in whole.tensors().items() if "self_conditioning" in path or "norm" in path
    )
    assert max(held) < 1.15 * whole.nbytes / size + replicated
    assert {model.nbytes // 1024 for model in models} == {-(-max(held) // 1024)}  # told alike everywhere
    sources = sum(info.nbytes for info in read_headers(published[name]).values())
    assert count[0] < 1.15 * sources + size * replicated


def test_a_number_of_ranks_that_does_not_fit(published):
    with pytest.raises(DGemmaError, match="3 ranks cannot share this model's weights: it has 8 query heads"):
        in_threads(3, lambda ranks: load(published["floats"], ranks=ranks))
