"""Kernels that only a GPU takes: a wrong one is found, named, and its twin gives the right answer. By stand-ins."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dgemma.checkpoint.loading import EMBEDDED, load_model
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.model import cpu, fused, selfcheck, trust
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.moe import Experts
from mlx_dgemma.terminal.start import load_engine


@pytest.fixture(autouse=True)
def fresh():
    selfcheck._check.cache_clear()
    trust.distrust(set())
    yield
    selfcheck._check.cache_clear()
    trust.distrust(set())


def on_gpu(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "on_cpu", lambda: False)


def test_right_kernels_are_trusted(monkeypatch):
    on_gpu(monkeypatch)
    selfcheck.check_kernels()
    assert trust.distrusted() == []


def test_a_cpu_takes_none_of_them_and_compares_nothing(monkeypatch):
    monkeypatch.setattr(selfcheck, "comparisons", lambda: pytest.fail("compared"))
    selfcheck.check_kernels()


def test_every_helper_is_compared_with_arguments_that_it_takes():
    for name, (plain, compiled, shapes) in fused.HELPERS.items():
        assert shapes and not selfcheck._helper_differs(name), name
        assert compiled is not plain


@pytest.mark.parametrize("name", list(fused.HELPERS))
def test_a_wrong_helper_is_replaced_by_its_plain_function(monkeypatch, name):
    plain, _, shapes = fused.HELPERS[name]

    def wrong(*arrays):
        results = plain(*arrays)
        return tuple(r * 1.5 for r in results) if isinstance(results, tuple) else results * 1.5 + 1

    monkeypatch.setitem(fused.HELPERS, name, (plain, wrong, shapes))
    on_gpu(monkeypatch)
    selfcheck.check_kernels()
    assert trust.distrusted() == [name]


def test_a_distrusted_helper_runs_plain(monkeypatch):
    on_gpu(monkeypatch)
    trust.distrust({"geglu"})
    x = mx.random.normal((3, 4), key=mx.random.key(0))
    plain, _, _ = fused.HELPERS["geglu"]
    assert mx.array_equal(fused.geglu(x, x), plain(x, x))


def test_not_a_number_differs_from_everything():
    one = mx.ones((3,))
    assert selfcheck._differ(one * mx.nan, one) and selfcheck._differ(one, one * mx.nan)
    assert not selfcheck._differ(one, one)


def blind_to_slices(x, w, scales, biases=None, transpose=True, group_size=64, bits=4, mode="affine"):
    """A kernel that reads a slice of rows from the table's beginning (and so is right for the first block only)."""
    return RIGHT(x, w, scales, biases, transpose, group_size, bits, mode) * (0 if w.shape[0] == selfcheck.ROWS else 1)


RIGHT = mx.quantized_matmul


def test_sliced_products_have_a_twin(monkeypatch):
    on_gpu(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(mx, "quantized_matmul", blind_to_slices)
        selfcheck.check_kernels()
    assert trust.distrusted() == ["sliced products"]
    monkeypatch.setattr(mx, "quantized_matmul", lambda *a, **k: pytest.fail("the kernel was used"))
    embedding = nn.Embedding(300, 64).to_quantized(64, 8)
    table = EmbeddingTable(embedding, mx.array(8.0), 30.0)
    dense = mx.dequantize(embedding.weight, embedding.scales, embedding.biases, 64, 8)[100:200]
    x, weights = mx.random.normal((1, 5, 64)), mx.random.uniform(shape=(1, 5, 100))
    np.testing.assert_allclose(np.array(table.logits(x, 100, 200)), np.array(x @ dense.T), atol=1e-4)
    np.testing.assert_allclose(np.array(table.mix(weights, 100, 200)), np.array(weights @ dense), atol=1e-4)


@pytest.mark.parametrize("kernel", ["gather_mm", "gather_qmm"])
def test_sorted_experts_have_a_twin(monkeypatch, kernel):
    on_gpu(monkeypatch)
    right = getattr(mx, kernel)

    def wrong_when_sorted(*arguments, sorted_indices=False, **options):
        return right(*arguments, **options) * (3 if sorted_indices else 1)

    monkeypatch.setattr(mx, kernel, wrong_when_sorted)
    selfcheck.check_kernels()
    assert trust.distrusted() == ["sorted experts"]

    class Sizes:
        hidden_size, moe_intermediate_size, num_experts = 64, 64, 4

    experts = Experts(Sizes)
    if kernel == "gather_qmm":
        experts.gate_up_proj = experts.gate_up_proj.to_quantized(64, 8)
        experts.down_proj = experts.down_proj.to_quantized(64, 8)
    x = mx.random.normal((1, 50, 64), key=mx.random.key(1))
    weights, chosen = mx.ones((1, 50, 2)) / 2, mx.broadcast_to(mx.array([0, 3]), (1, 50, 2))
    got = experts(x, weights, chosen)
    monkeypatch.undo()
    assert mx.allclose(got, experts(x, weights, chosen), atol=1e-4)


def test_loading_compares_and_the_command_line_says_what_it_found(monkeypatch, capsys):
    on_gpu(monkeypatch)
    plain, _, shapes = fused.HELPERS["entropy"]
    monkeypatch.setitem(fused.HELPERS, "entropy", (plain, lambda *a: plain(*a) + 1, shapes))
    load_model(EMBEDDED, ModelConfig.from_file(EMBEDDED / "config.json"), mx.float32)
    assert trust.distrusted() == ["entropy"]
    load_engine(None, "float32")
    assert "computes wrongly: entropy; plain operations take their place" in capsys.readouterr().err
