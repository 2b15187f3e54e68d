"""The elementwise helpers: compiled as plain, and traced once whatever scalars and shapes come."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.model import fused

ARRAYS = {
    "geglu": 2, "add_and_scale": 3, "tempered_max": 4, "tempered_exp": 4, "add_rescaled": 4, "rescale": 4, "entropy": 2,
    "position_inside": 3, "tempered_exp_below": 6, "normalized": 3,
}  # fmt: skip


def some(count: int, rows: int) -> list[mx.array]:
    return [mx.random.uniform(0.5, 2.0, (rows, 8), key=mx.random.key(i)) for i in range(count)]


def test_every_helper_is_tested():
    assert sorted(ARRAYS) == sorted(fused.HELPERS)


@pytest.mark.parametrize("name", ARRAYS)
def test_traced_once_for_all_values_and_lengths(name):
    """A new length or scalar must not trace again: the graph is built (not run: no compiler needed) three times."""
    helper = getattr(fused, name)
    traces = []

    def traced(*arrays):
        traces.append(1)
        return helper.__wrapped__(*arrays)

    compiled = mx.compile(traced, shapeless=True)
    for rows in (3, 5, 8):
        compiled(*some(ARRAYS[name], rows))
    assert len(traces) == 1


@pytest.mark.parametrize("name", ARRAYS)
def test_a_gpu_gets_the_compiled_function_and_a_cpu_the_plain_one(name, monkeypatch):
    helper, arrays = getattr(fused, name), some(ARRAYS[name], 4)
    plain = helper(*arrays)
    assert [np.array(a).dtype for a in (plain if isinstance(plain, tuple) else [plain])]
    real = mx.default_device
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    compiled = helper(*arrays)  # built for this machine, whose compiler may be absent: not run
    monkeypatch.setattr(mx, "default_device", real)
    for a, b in zip(*([x] if isinstance(x, mx.array) else list(x) for x in (plain, compiled)), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype


def test_geglu_is_torchs():
    torch = pytest.importorskip("torch")
    gate, up = mx.linspace(-6, 6, 101), mx.linspace(1, 2, 101)
    expected = torch.nn.functional.gelu(torch.tensor(np.array(gate)), approximate="tanh") * torch.tensor(np.array(up))
    np.testing.assert_allclose(np.array(fused.geglu(gate, up)), expected.numpy(), atol=2e-6)
