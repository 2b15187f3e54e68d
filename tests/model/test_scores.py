"""Attention in blocks of rows against whole score matrices; the probe for fused kernels; memory."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma import GenerationConfig
from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.model import cpu, scores
from mlx_dgemma.model.prefill import prefill


def qkv(heads: int, kv_heads: int, length: int, visible: int, seed: int):
    keys = mx.random.split(mx.random.key(seed), 3)
    q = mx.random.normal((2, heads, length, 8), key=keys[0])
    return q, *(mx.random.normal((2, kv_heads, visible, 8), key=k) for k in keys[1:])


def whole(q, keys, values, allowed):
    """Attention by the book, in NumPy."""
    repeat = q.shape[1] // keys.shape[1]
    keys, values = np.repeat(np.array(keys), repeat, axis=1), np.repeat(np.array(values), repeat, axis=1)
    s = np.where(allowed, np.array(q) @ keys.swapaxes(-1, -2), -np.inf)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True)) @ values


@given(
    st.sampled_from([(4, 1), (4, 2), (3, 3)]), st.integers(1, 20), st.integers(0, 30), st.sampled_from([1, 900, 10**9]),
    st.sampled_from([None, 1, 5, 9]), st.integers(1, 7), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_number_of_rows_gives_the_same(heads, length, before, budget, window, band, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SCORE_BYTES", budget)
        patch.setattr(scores, "BAND_ROWS", band)
        q, keys, values = qkv(*heads, length, before + length, seed)
        everything = np.ones((length, before + length), bool)
        got = scores.attend_all(q, keys, values)
        np.testing.assert_allclose(np.array(got), whole(q, keys, values, everything), atol=1e-5)
        distance = np.arange(before, before + length)[:, None] - np.arange(before + length)[None]
        allowed = (distance >= 0) & (distance < (window or 10**9))
        got = scores.attend_causally(q, keys, values, window)
        np.testing.assert_allclose(np.array(got), whole(q, keys, values, allowed), atol=1e-5)


def test_a_fused_kernel_is_used_where_there_is_one_and_the_scores_would_not_fit(monkeypatch):
    q, keys, values = qkv(4, 2, 16, 40, 0)
    real, forced = mx.fast.scaled_dot_product_attention, []

    def with_kernel(*args, force_fused=False, **options):
        forced.append(force_fused)
        return real(*args, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", with_kernel)
    scores.has_fused_kernel.cache_clear()
    try:
        plenty = scores.attend_all(q, keys, values), scores.attend_causally(q, keys, values, None)
        assert not any(forced)  # the scores fit: MLX's own choice, or the plain way
        monkeypatch.setattr(cpu, "SCORE_BYTES", 1000)
        scarce = scores.attend_all(q, keys, values), scores.attend_causally(q, keys, values, None)
        assert any(forced)
    finally:
        scores.has_fused_kernel.cache_clear()
    for a, b in zip(plenty, scarce, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5)


@pytest.mark.parametrize("broken", [True, False])
def test_a_kernel_that_is_wrong_or_absent_is_not_used(monkeypatch, broken):
    real = mx.fast.scaled_dot_product_attention

    def kernel(*args, force_fused=False, **options):
        if force_fused and not broken:
            raise ValueError("no fused kernel")
        return real(*args, **options) * (2 if force_fused else 1)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", kernel)
    scores.has_fused_kernel.cache_clear()
    try:
        assert not scores.has_fused_kernel(16, mx.float32, None)
    finally:
        scores.has_fused_kernel.cache_clear()


def test_memory_beyond_weights_and_cache_does_not_grow_with_the_square_of_the_prompt(model, monkeypatch):
    """Sixteen times the prompt: prefill and a canvas may need a little more, not 256 times."""
    monkeypatch.setattr(cpu, "SCORE_BYTES", 1 << 16)

    def transient(length: int) -> int:
        cache = model.make_cache()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        prefill(model, mx.array([[5] * length]), cache, chunk=64)
        config = GenerationConfig(max_denoising_steps=2)
        list(denoise_canvas(ModelDenoiser(model, cache), config, SeededNoise(0, 120), (1, 16)))
        return mx.get_peak_memory() - before - cache.nbytes

    transient(30)
    assert transient(480) < 4 * transient(30)


def test_a_cpu_takes_blocks_of_large_scores_on_two_streams(monkeypatch):
    q, keys, values = qkv(4, 2, 16, 40, 0)
    streams, stream = [], mx.stream
    monkeypatch.setattr(mx, "stream", lambda s: streams.append(s) or stream(s))
    small = scores.attend_all(q, keys, values)
    assert len(set(map(str, streams))) == 1
    monkeypatch.setattr(cpu, "LANES_FROM", 0)
    large = scores.attend_all(q, keys, values)
    assert len(set(map(str, streams))) == 2
    assert mx.allclose(small, large, atol=1e-6)
