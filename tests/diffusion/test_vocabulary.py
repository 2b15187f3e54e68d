"""The walk over the vocabulary against its plain twin: argmax, entropy, draw, soft embeddings, memory."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma.diffusion import vocabulary
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import Query, from_logits, predict

B, C, H = 2, 5, 64
CAP, SCALE = 30.0, 8.0


def make(size: int, seed: int, *, bits: int | None = None, sharpness: float = 1.0):
    """Hidden states, the table, and the same table dense for the plain twin."""
    keys = mx.random.split(mx.random.key(seed))
    embedding = nn.Embedding(size, H)
    embedding.weight = mx.random.normal((size, H), key=keys[0])
    if bits:
        embedding = nn.QuantizedEmbedding.from_embedding(embedding, 32, bits)
        e = embedding
        dense = mx.dequantize(e.weight, e.scales, e.biases, 32, bits)
    else:
        dense = embedding.weight
    hidden = sharpness * mx.random.normal((B, C, H), key=keys[1])
    return hidden, EmbeddingTable(embedding, mx.array(SCALE), CAP), dense


def plain(hidden, dense, query):
    """What `predict` should give, from whole logits."""
    logits = CAP * mx.tanh(hidden @ dense.T / CAP)
    return from_logits(logits, query, mx.softmax(logits / query.temperature, axis=-1) @ dense * SCALE)


def assert_same(got, expected):
    assert np.array_equal(np.array(got.argmax), np.array(expected.argmax))
    assert np.array_equal(np.array(got.proposal), np.array(expected.proposal))
    np.testing.assert_allclose(np.array(got.entropy), np.array(expected.entropy), atol=5e-5)
    if got.soft is not None:
        np.testing.assert_allclose(np.array(got.soft), np.array(expected.soft), atol=2e-4)


@given(
    st.integers(1, 300),
    st.integers(1, 320),
    st.sampled_from([1, 8, 64]),
    st.sampled_from([0.05, 0.3, 2.0]),
    st.floats(0.3, 1.0),
    st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_any_size_block_and_group(size, block, group, sharpness, temperature, seed):
    hidden, table, dense = make(size, seed, sharpness=sharpness)
    query = Query(temperature, mx.random.uniform(shape=(B, C), key=mx.random.key(seed + 1)), wants_soft=True)
    before = vocabulary.GROUP
    vocabulary.GROUP = group
    try:
        got = predict(hidden, table, query, block)
    finally:
        vocabulary.GROUP = before
    assert_same(got, plain(hidden, dense, query))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_tables(bits):
    hidden, table, dense = make(1000, 3, bits=bits, sharpness=0.3)
    query = Query(0.6, mx.random.uniform(shape=(B, C), key=mx.random.key(0)), wants_soft=True)
    assert_same(predict(hidden, table, query, 256), plain(hidden, dense, query))


def test_the_last_step_skips_the_soft_embeddings_and_argmax_the_draw():
    hidden, table, dense = make(500, 1)
    query = Query(0.5, None, wants_soft=False)
    got = predict(hidden, table, query, 128)
    assert got.soft is None and mx.array_equal(got.proposal, got.argmax)
    assert_same(got, plain(hidden, dense, query))


def test_draws_follow_the_distribution():
    hidden, table, dense = make(200, 2, sharpness=0.1)
    row, n = hidden[:1, :1], 4000
    u = ((mx.arange(n) + 0.5) / n)[None]
    query = Query(1.0, u, wants_soft=False)
    drawn = np.array(predict(mx.broadcast_to(row, (1, n, H)), table, query, 64).proposal)[0]
    p = np.array(mx.softmax(CAP * mx.tanh(row @ dense.T / CAP), axis=-1))[0, 0]
    assert (np.diff(drawn) >= 0).all()  # in id order
    np.testing.assert_allclose(np.bincount(drawn, minlength=200) / n, p, atol=1e-3)


def test_no_array_of_canvas_times_vocabulary_is_made():
    size, block = 32_768, 1024
    hidden, table, _ = make(size, 0, sharpness=0.1)
    hidden = mx.broadcast_to(hidden[:1, :1], (1, 256, H)) + 0
    query = Query(0.6, mx.random.uniform(shape=(1, 256)), wants_soft=True)
    mx.eval(hidden, query.u, table.embedding.weight)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    got = predict(hidden, table, query, block)
    mx.eval(got.argmax, got.proposal, got.entropy, got.soft)
    whole = 4 * 256 * size
    assert mx.get_peak_memory() - before < whole / 2


def sparse_by_the_book(hidden, dense, cutoff, temperature):
    """Soft embeddings from the ids that are at least exp(−cutoff) times as likely as the likeliest, others left out."""
    p = mx.softmax(CAP * mx.tanh(hidden @ dense.T / CAP) / temperature, axis=-1)
    return mx.where(p >= np.exp(-cutoff) * p.max(axis=-1, keepdims=True), p, 0) @ dense * SCALE


@given(st.integers(1, 400), st.integers(0, B * C), st.sampled_from([1.0, 4.0, 30.0]), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_a_cutoff_leaves_out_what_it_says(size, dense_rows, cutoff, seed):
    hidden, table, dense = make(size, seed, sharpness=0.2)
    order = mx.array(np.random.default_rng(seed).permutation(B * C))
    rows = vocabulary.SoftRows(order, dense_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "KEPT", 30)  # all groups
        got = predict(hidden, table, Query(0.7, None, True, cutoff, rows), 128)
    soft, everything = np.array(got.soft).reshape(-1, H), Query(0.7, None, wants_soft=True)
    exact = np.array(predict(hidden, table, everything, 128).soft).reshape(-1, H)
    cut = np.array(sparse_by_the_book(hidden, dense, cutoff, 0.7)).reshape(-1, H)
    first, rest = np.split(np.array(order), [dense_rows])
    np.testing.assert_allclose(soft[first], exact[first], atol=2e-4)
    np.testing.assert_allclose(soft[rest], cut[rest], atol=2e-4)


def test_sparse_rows_keep_the_heaviest_groups_and_counts_tell_how_many_there_are():
    hidden, table, dense = make(1000, 5, sharpness=0.3)
    rows = vocabulary.SoftRows(mx.arange(B * C), 0)
    got = predict(hidden, table, Query(0.5, None, True, 8.0, rows), 256)
    p = np.array(mx.softmax(CAP * mx.tanh(hidden @ dense.T / CAP) / 0.5, axis=-1))
    masses = np.pad(p, [(0, 0), (0, 0), (0, -1000 % vocabulary.GROUP)]).reshape(B, C, -1, vocabulary.GROUP).sum(-1)
    counts = (masses >= np.exp(-8) * p.max(-1, keepdims=True)).sum(-1)
    assert np.array_equal(np.array(got.groups), counts) and counts.max() > vocabulary.KEPT
    heaviest = np.repeat(masses >= np.sort(masses)[..., -vocabulary.KEPT, None], vocabulary.GROUP, axis=-1)[..., :1000]
    kept = np.where(heaviest & (p >= np.exp(-8) * p.max(-1, keepdims=True)), p, 0)
    np.testing.assert_allclose(np.array(got.soft), kept @ np.array(dense) * SCALE, atol=2e-4)


def test_uncertain_rows_are_dense():
    rows = vocabulary.SoftRows.of(mx.array([[1, 900, 2, 3, 1, 1] * 8]))
    assert rows.dense == 16  # sixteen of the 48 rows have more than two groups
    assert sorted(rows.order.tolist()) == list(range(48))
    assert {r % 6 for r in rows.order.tolist()[:16]} == {1, 3}
    assert vocabulary.SoftRows.of(mx.array([[1, 2]])).dense == 0
    assert vocabulary.SoftRows.of(mx.array([[5, 2]])).dense == 2


@pytest.mark.parametrize("bits", [4, 8])
def test_a_cutoff_over_a_quantized_table(bits):
    hidden, table, dense = make(1000, 3, bits=bits, sharpness=0.3)
    rows = vocabulary.SoftRows(mx.array([3, 1, 0, 2, 9, 8, 7, 6, 5, 4]), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "KEPT", 63)  # all groups
        got = np.array(predict(hidden, table, Query(0.6, None, True, 6.0, rows), 256).soft).reshape(-1, H)
    exact = np.array(plain(hidden, dense, Query(0.6, None, True)).soft).reshape(-1, H)
    cut = np.array(sparse_by_the_book(hidden, dense, 6.0, 0.6)).reshape(-1, H)
    np.testing.assert_allclose(got[:4], exact[:4], atol=5e-4)
    np.testing.assert_allclose(got[4:], cut[4:], atol=5e-4)


@pytest.mark.parametrize(
    ("size", "block", "count"), [(300, 32, 1), (300, 48, 5), (300, 8192, 20), (7, 16, 20), (40, 16, 20)]
)
def test_the_likeliest_ids_are_told_in_order(size, block, count):
    hidden, table, dense = make(size, 3, sharpness=0.3)
    query = Query(0.7, None, wants_soft=False, alternatives=count)
    got, expected = predict(hidden, table, query, block), plain(hidden, dense, query)
    assert got.alternatives[0].shape == (B, C, min(count, size))
    assert np.array_equal(np.array(got.alternatives[0]), np.array(expected.alternatives[0]))
    np.testing.assert_allclose(np.array(got.alternatives[1]), np.array(expected.alternatives[1]), atol=5e-5)
    assert np.array_equal(np.array(got.alternatives[0][..., 0]), np.array(got.argmax))
    np.testing.assert_allclose(np.array(got.alternatives[1][..., 0]), np.array(got.log_p), atol=1e-5)
    assert predict(hidden, table, Query(0.7, None, wants_soft=False), block).alternatives is None
