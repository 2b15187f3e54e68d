"""The two operations of the prefix cache against a plain list of everything appended, and their memory."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma.model.cache import LayerCache, PrefixCache
from mlx_dgemma.model.scores import causal_mask

HEADS, DIM = 2, 4


def random_kv(length: int, seed: int) -> tuple[mx.array, mx.array]:
    k, v = mx.random.split(mx.random.key(seed))
    return mx.random.normal((1, HEADS, length, DIM), key=k), mx.random.normal((1, HEADS, length, DIM), key=v)


@given(
    st.sampled_from([None, 1, 2, 7]),
    st.lists(st.tuples(st.sampled_from(["append", "overlay"]), st.integers(1, 12)), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_append_and_overlay_against_a_plain_list(window, operations):
    cache, everything = LayerCache(window), np.zeros((1, HEADS, 0, DIM), np.float32)
    for seed, (operation, length) in enumerate(operations):
        k, v = random_kv(length, seed)
        kept = everything if window is None else everything[:, :, max(0, everything.shape[2] - window + 1) :]
        keys, values = (cache.append if operation == "append" else cache.overlay)(k, v)
        mx.eval(keys, values)
        assert np.array_equal(np.array(keys), np.concatenate([kept, np.array(k)], axis=2))
        assert np.array_equal(np.array(values[:, :, -length:]), np.array(v))
        if operation == "append":
            everything = np.concatenate([everything, np.array(k)], axis=2)
        assert cache.length == min(everything.shape[2], everything.shape[2] if window is None else window - 1)


@pytest.mark.parametrize("window", [None, 8])
def test_an_overlay_that_is_taken_back_is_never_computed(window):
    """A step is begun ahead of the one that ends the canvas; what is stitched next must not wait for it."""
    cache, layer = PrefixCache([window]), random_kv(16, 0)
    cache.layers[0].append(*layer)
    cache.layers[0].overlay(*random_kv(4, 1))
    mx.eval(cache.arrays())
    before = cache.snapshot()
    kept = [np.array(array) for array in cache.arrays()]
    cache.layers[0].overlay(*(mx.full((1, HEADS, 4, DIM), float("nan")) for _ in range(2)))
    cache.restore(before)
    assert all(np.array_equal(now, was) for now, was in zip(cache.arrays(), kept, strict=True))


@pytest.mark.parametrize("window", [None, 4096])
def test_an_overlay_step_does_not_copy_the_prefix(window):
    prefix, canvas, heads, dim = 4000, 16, 8, 128
    cache = LayerCache(window)
    cache.append(mx.zeros((1, heads, prefix, dim)), mx.zeros((1, heads, prefix, dim)))
    mx.eval(cache.keys, cache.values)

    def step() -> None:
        keys, values = cache.overlay(mx.ones((1, heads, canvas, dim)), mx.ones((1, heads, canvas, dim)))
        total = keys[:, :, -canvas:].sum() + values[:, :, -canvas:].sum()
        del keys, values
        mx.eval(total, cache.keys, cache.values)
        assert total.item() == 2 * heads * canvas * dim

    step()  # may still have to make room
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(3):
        step()
    assert mx.get_peak_memory() - before < cache.keys.nbytes / 4


def test_a_sliding_layer_keeps_only_its_window():
    cache = LayerCache(8)
    for seed in range(20):
        cache.append(*random_kv(5, seed))
    mx.eval(cache.keys)
    assert cache.length == 7 and cache.keys.shape[2] == 7


@given(st.integers(1, 9), st.integers(0, 30), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_mask_is_the_causal_band(window, before, length):
    cache = LayerCache(window)
    cache.length = min(before, window - 1)
    visible = cache.length + length
    query, key = np.arange(cache.length, visible)[:, None], np.arange(visible)[None]
    band = (key <= query) & (query - key < window)
    mask = causal_mask(length, visible, window)
    if mask is None or isinstance(mask, str):  # MLX's own: lower-right aligned causal, or nothing hidden
        assert (band == (key <= query)).all() and (mask == "causal" or length == 1)
    else:
        assert (np.array(mask) == band).all()
