"""Experts: rows in tiles and rows one by one against a plain loop."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma.model import cpu
from mlx_dgemma.model.cpu import tiles
from mlx_dgemma.model.moe import Experts


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_every_row_gets_a_slot_of_its_own_in_a_tile_of_its_expert(chosen, tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "TILE", tile)
        experts = sorted(chosen)
        slots, of_tile = (a.tolist() for a in tiles(mx.array(experts), 7))
    assert len(set(slots)) == len(slots) and max(slots) < tile * len(of_tile)
    assert [of_tile[slot // tile] for slot in slots] == experts
    assert of_tile == sorted(of_tile)  # so that an expert's weights are read once


class Sizes:
    hidden_size, moe_intermediate_size, num_experts = 32, 16, 5


@pytest.mark.parametrize("length", [1, 3, 70])  # 70 tokens are sorted, fewer are not
@pytest.mark.parametrize("is_tiled", [True, False])
def test_experts_by_the_book(monkeypatch, length, is_tiled):
    experts, k = Experts(Sizes), 2
    x = mx.random.normal((2, length, Sizes.hidden_size), key=mx.random.key(1))
    weights = mx.random.uniform(shape=(2, length, k), key=mx.random.key(2))
    chosen = mx.argsort(mx.random.normal((2, length, Sizes.num_experts), key=mx.random.key(3)))[..., :k]
    multiplied = []
    monkeypatch.setattr(Experts, "_wants_tiles", lambda self: is_tiled)
    monkeypatch.setattr(cpu, "tiles", lambda *a: multiplied.append(a) or tiles(*a))
    out = np.array(experts(x, weights, chosen))
    assert bool(multiplied) == (is_tiled and length == 70)
    up, down = np.array(experts.gate_up_proj.weight), np.array(experts.down_proj.weight)
    for b, t in np.ndindex(2, length):
        expected = 0
        for weight, e in zip(weights[b, t].tolist(), chosen[b, t].tolist(), strict=True):
            g, u = np.split(up[e] @ np.array(x[b, t]), 2)
            gelu = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
            expected = expected + weight * (down[e] @ (gelu * u))
        np.testing.assert_allclose(out[b, t], expected, atol=1e-5)


def test_tiles_are_for_plain_weights_on_a_cpu(monkeypatch):
    experts = Experts(Sizes)
    assert experts._wants_tiles()
    monkeypatch.setattr(cpu, "on_cpu", lambda: False)
    assert not experts._wants_tiles()
    monkeypatch.undo()
    experts.gate_up_proj = experts.gate_up_proj.to_quantized(group_size=32, bits=4)
    assert not experts._wants_tiles()
