"""The vocabulary diet: equal to a full walk where the shortlist holds all, and never surer than the truth."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma import Engine, GenerationConfig, Request, Settling
from mlx_dgemma.diffusion.diet import TAIL, Shortlist, predict_on_diet, with_tail
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import GROUP, Query, SoftRows, from_logits, predict

V, H, B, C = 3001, 64, 2, 24


def table(kind: str, size: int = V) -> EmbeddingTable:
    embedding = nn.Embedding(size, H)
    embedding.weight = mx.random.normal((V, H), key=mx.random.key(1))[:size]
    dtype = mx.float32
    if kind == "bfloat16":
        embedding.weight, dtype = embedding.weight.astype(mx.bfloat16), mx.bfloat16
    scale = mx.array(8.0, dtype)
    return EmbeddingTable(embedding.to_quantized(32, 8) if kind == "quantized" else embedding, scale, 30.0)


def hidden(sharpness: float, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Near the embeddings of two ids each, the nearer the sharper."""
    rows = mx.random.normal((V, H), key=mx.random.key(1))
    first, second = mx.random.randint(0, V, (2, B, C), key=mx.random.key(2))
    return (0.2 * sharpness * (rows[first] + 0.95 * rows[second])).astype(dtype)


def query(**own) -> Query:
    u = mx.random.uniform(shape=(B, C), key=mx.random.key(3))
    return Query(**{"temperature": 0.7, "u": u, "wants_soft": True, "keep": 8} | own)


def close(a: mx.array, b: mx.array, error: float) -> None:
    np.testing.assert_allclose(np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32)), atol=error, rtol=error)


def shortlist(walked, walks=None) -> Shortlist:
    return Shortlist.of(*walked.heaviest, np.zeros((B, C), bool) if walks is None else walks)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "quantized"])
def test_where_the_shortlist_holds_all_it_is_the_full_walk(kind):
    of, x = table(kind), hidden(2.0, mx.bfloat16 if kind == "bfloat16" else mx.float32)
    walked = predict(x, of, query())
    assert walked.heaviest[1].max().item() < 2e-3 and walked.heaviest[0].shape == (B, C, 8)
    fasted = predict_on_diet(x, of, query(), shortlist(walked))
    assert np.array_equal(fasted.argmax, walked.argmax)
    assert (fasted.proposal == walked.proposal).mean().item() > 0.95  # where rounding may tip one over
    error = 2e-2 if kind == "bfloat16" else 1e-3
    close(fasted.log_p, walked.log_p, error)
    close(fasted.soft, walked.soft, 40 * error)  # an embedding has length 64
    assert (fasted.entropy >= walked.entropy - 1e-3).all().item()
    assert fasted.scored == B * C * 8 * GROUP and fasted.mixed == fasted.scored < walked.scored / 20


@pytest.mark.parametrize(("kind", "error"), [("float32", 1e-5), ("quantized", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("sharpness", [0.1, 2.0])
def test_a_shortlist_of_all_ids_has_no_tail_and_changes_nothing(kind, error, sharpness):
    of, x = table(kind), hidden(sharpness, mx.bfloat16 if kind == "bfloat16" else mx.float32)
    asked = query(keep=V)  # more groups than there are
    walked = predict(x, of, asked)
    assert walked.heaviest[1].max().item() == 0
    walks = np.zeros((B, C), bool)
    walks[1, 2:9] = True
    fasted = predict_on_diet(x, of, asked, shortlist(walked, walks))
    close(fasted.entropy, walked.entropy, error)
    close(fasted.log_p, walked.log_p, error)
    close(fasted.soft / H, walked.soft / H, error)  # an embedding has length 64
    same = 1 if kind != "bfloat16" else 0.9  # where rounding may tip one over
    assert (fasted.argmax == walked.argmax).mean().item() >= same
    assert (fasted.proposal == walked.proposal).mean().item() >= same - 0.05


@given(st.floats(0.05, 2.0), st.floats(0.4, 1.5))
@settings(max_examples=25)
def test_the_entropy_is_never_below_the_true_one(sharpness, temperature):
    of, x = table("float32"), hidden(sharpness)
    asked = query(temperature=temperature, u=None, wants_soft=False)
    walked = predict(x, of, asked)
    fasted = predict_on_diet(x, of, asked, shortlist(walked))
    assert (fasted.entropy >= walked.entropy - 1e-4).all().item()
    same = fasted.argmax == walked.argmax  # a flat position's likeliest id may lie in no heavy group
    close(mx.where(same, fasted.log_p, 0), mx.where(same, walked.log_p, 0), 1e-3)  # the tail's share is not forgotten
    assert fasted.soft is None and np.array_equal(fasted.proposal, fasted.argmax)


def entropy_of(p: np.ndarray) -> float:
    return -float((p[p > 0] * np.log(p[p > 0])).sum())


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 12), st.integers(1, 60), st.floats(0, 1))
@settings(max_examples=200)
def test_a_tail_no_larger_than_the_recorded_one_makes_no_position_surer(seed, spread, inside, more):
    """For any logits and any shortlist, the recorded tail being the true one or a larger one."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=64) * spread
    p = np.exp(logits - logits.max())
    p /= p.sum()
    own, others = np.split(p[random.permutation(64)], [inside])
    true = others.sum()
    recorded, known = mx.array(true + more * (1 - true)), mx.array(entropy_of(own / own.sum()))
    assert with_tail(known, recorded, mx.array(float(64 - inside))).item() >= entropy_of(p) - 1e-4


def test_the_tail_is_as_uncertain_as_it_can_be():
    tail = mx.array([0.0, 1e-3, 0.5])
    got = with_tail(mx.array([0.2, 0.0, np.log(2)]), tail, mx.array(1000.0))
    spread = [np.r_[(1 - t) * np.array(p), np.full(1000, t / 1000)] for t, p in ((1e-3, [1.0]), (0.5, [0.5, 0.5]))]
    np.testing.assert_allclose(got, [0.2, *map(entropy_of, spread)], rtol=1e-4)
    assert with_tail(mx.array(0.3), mx.array(0.0), mx.array(0.0)).item() == pytest.approx(0.3)


def test_a_last_group_that_is_short_hides_no_ids():
    of, x = table("float32", 20), hidden(0.3)
    logits = of.cap * mx.tanh(of.logits(x, 0, 20) / of.cap)
    true = from_logits(logits, query(u=None))
    tail = mx.softmax(logits / 0.7, axis=-1)[..., :16].sum(axis=-1)
    only_last = Shortlist.of(mx.ones((B, C, 1), mx.int32), tail, np.zeros((B, C), bool))
    fasted = predict_on_diet(x, of, query(u=None), only_last)
    assert (fasted.entropy >= true.entropy - 1e-4).all().item() and fasted.argmax.min().item() >= 16


def test_positions_that_walk_are_exact_and_stand_in_their_places():
    of, x = table("float32"), hidden(0.3)
    walked = predict(x, of, query())
    walks = np.array(walked.heaviest[1] > TAIL)
    assert walks.all()  # at this sharpness no shortlist would do
    walks = np.zeros((B, C), bool)
    walks[0, [3, 17]] = walks[1, 5] = True
    asked = shortlist(walked, walks)
    assert asked.walks == 16 and sorted(asked.order.tolist()) == list(range(B * C))
    fasted = predict_on_diet(x, of, query(), asked)
    for at in ((0, 3), (0, 17), (1, 5)):
        assert fasted.proposal[at].item() == walked.proposal[at].item()
        close(fasted.entropy[at], walked.entropy[at], 1e-5)
        close(fasted.soft[at], walked.soft[at], 1e-5)
    assert fasted.scored == 16 * V + (B * C - 16) * 8 * GROUP


def test_rows_may_have_temperatures_of_their_own():
    of, x = table("float32"), hidden(2.0)
    temperatures = mx.array([0.5, 1.1])[:, None, None]
    walked = predict(x, of, query(temperature=temperatures))
    walks = np.zeros((B, C), bool)
    walks[:, ::3] = True
    fasted = predict_on_diet(x, of, query(temperature=temperatures), shortlist(walked, walks))
    close(fasted.log_p, walked.log_p, 1e-3)


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, 0.75, 0.999999])
def test_proposals_are_the_inverse_cdf_over_the_shortlist_in_the_order_of_ids(u):
    of, x = table("float32"), hidden(0.5)
    walked = predict(x, of, query())
    groups = np.array(walked.heaviest[0])
    ids = (groups[..., None] * GROUP + np.arange(GROUP)).reshape(B, C, -1)
    assert (np.diff(ids) > 0).all()
    logits = np.take_along_axis(np.array(of.logits(x, 0, V)).astype(float), np.minimum(ids, V - 1), axis=-1)
    p = np.where(ids < V, np.exp(30 * np.tanh(logits / 30) / 0.7), 0)
    cumulative = np.cumsum(p / p.sum(axis=-1, keepdims=True), axis=-1)
    fasted = predict_on_diet(x, of, query(u=mx.full((B, C), u)), shortlist(walked))
    place = (ids == np.array(fasted.proposal)[..., None]).argmax(axis=-1)[..., None]
    before = np.take_along_axis(np.pad(cumulative, [(0, 0), (0, 0), (1, 0)]), place, axis=-1)
    assert (before <= u + 1e-5).all()
    assert (np.take_along_axis(cumulative, place, axis=-1) >= u - 1e-5).all()


def test_a_tail_is_told_however_small():
    of, x = table("float32"), hidden(1.6)
    groups, tail = predict(x, of, query()).heaviest
    logits = 30 * np.tanh(np.array(of.logits(x, 0, V)).astype(float) / 30) / 0.7
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = np.pad(p / p.sum(axis=-1, keepdims=True), [(0, 0), (0, 0), (0, -V % GROUP)]).reshape(B, C, -1, GROUP).sum(-1)
    np.put_along_axis(p, np.array(groups), 0, axis=-1)
    true = p.sum(axis=-1)
    assert (true < 1e-7).any()  # less than what a float32 loses next to 1
    np.testing.assert_allclose(tail, true, rtol=1e-3)


def test_alternatives_are_answered_by_a_full_walk():
    of, x = table("float32"), hidden(1.0)
    walked = predict(x, of, query(alternatives=3))
    told = predict_on_diet(x, of, query(alternatives=3), shortlist(walked))
    assert told.scored == B * C * V and np.array_equal(told.alternatives[0], walked.alternatives[0])


def test_where_all_positions_walk_it_is_the_full_walk_bit_for_bit():
    of, x = table("float32"), hidden(0.3)
    walked = predict(x, of, query())
    told = predict_on_diet(x, of, query(), shortlist(walked, np.ones((B, C), bool)))
    for name in ("argmax", "proposal", "entropy", "log_p", "soft"):
        assert np.array_equal(getattr(told, name), getattr(walked, name))
    assert told.scored == told.mixed == B * C * V


def test_a_cutoff_of_soft_embeddings_has_no_effect_on_a_diet():
    of, x = table("float32"), hidden(1.0)
    walked = predict(x, of, query(cutoff=10.0))
    walks = np.zeros((B, C), bool)
    walks[0, :5] = True
    with_cutoff = query(cutoff=10.0, rows=SoftRows.of(walked.groups))
    told, expected = (predict_on_diet(x, of, asked, shortlist(walked, walks)) for asked in (with_cutoff, query()))
    assert np.array_equal(told.soft, expected.soft) and told.groups is None


def test_a_generation_on_diet_ends_in_a_full_walk():
    engine = Engine.load()
    size = engine.model.config.vocab_size
    plain = engine.generate(Request("sudoku ............2431"))
    rule = Settling(walk_every=3, groups=2, entropy=1e-30)  # nothing settles
    request = Request("sudoku ............2431", settings=GenerationConfig(settling=rule))
    steps = [event for event in engine.stream(request) if isinstance(event, DenoisingStep)]
    full = [e.work.scored == e.work.rows * size for e in steps]
    assert full[0] and full[1] and full[-1] and not all(full) and steps[-1].computed is None
    assert engine.generate(request).text == plain.text
    told = engine.generate(Request(request.prompt, settings=request.settings, alternatives=2))
    assert len(told.alternatives) == len(told.tokens)  # which all ids are needed for
