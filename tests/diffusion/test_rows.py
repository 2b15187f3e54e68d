"""The vocabulary by rows of several ranks against one walk over all of it; what a table that is cut is not asked."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.diffusion.rows import predict_by_rows
from mlx_dgemma.diffusion.settling import Settling
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import Query, predict
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.cut import Units, cuts
from tests.diffusion.test_vocabulary import CAP, SCALE, B, C, H, make
from tests.distributed.threads import in_threads

PUBLISHED = Path(__file__).parents[1] / "data" / "config.json"


def by_rows(size, hidden, table, query, block=None):
    """Every rank's prediction."""
    config = replace(ModelConfig.from_file(PUBLISHED), vocab_size=table.size)
    mx.eval(hidden, table.embedding.weight, *([] if query.u is None else [query.u]))  # no other thread could
    ranks_cuts = cuts(config, [Units()] * len(config.layers), size)

    def one(ranks):
        cut, own = ranks_cuts[ranks.rank], nn.Embedding(1, H)
        own.weight = table.embedding.weight[cut.rows.start : cut.rows.stop]
        got = predict_by_rows(hidden, EmbeddingTable(own, mx.array(SCALE), CAP), query, (cut, ranks), block)
        mx.eval(got.argmax, got.proposal, got.entropy, got.log_p, got.soft, *(got.alternatives or ()))
        return got

    return in_threads(size, one)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("sharpness", [0.05, 0.3, 2.0])
@pytest.mark.parametrize(("vocabulary", "block"), [(100, None), (1000, 64)])
def test_ranks_predict_what_one_walk_does(size, sharpness, vocabulary, block):
    hidden, table, _ = make(vocabulary, 3, sharpness=sharpness)
    query = Query(0.7, mx.random.uniform(shape=(B, C), key=mx.random.key(5)), True, alternatives=40)
    expected, ranks = predict(hidden, table, query), by_rows(size, hidden, table, query, block)
    for got in ranks:
        for name in ("argmax", "proposal"):
            assert mx.array_equal(getattr(got, name), getattr(expected, name))
        for name in ("entropy", "log_p", "soft"):
            ours, theirs = getattr(got, name), getattr(expected, name)
            np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-4)
            assert mx.array_equal(ours, getattr(ranks[0], name))
        assert got.alternatives[0].dtype == expected.alternatives[0].dtype
        assert mx.array_equal(got.alternatives[0], expected.alternatives[0])
        np.testing.assert_allclose(np.array(got.alternatives[1]), np.array(expected.alternatives[1]), atol=2e-4)
        assert (got.scored, got.mixed) == (expected.scored, expected.mixed)


def test_of_a_tie_the_smallest_id_wins_whoever_has_it():
    hidden, table, _ = make(64, 0)
    table.embedding.weight = mx.tile(table.embedding.weight[:16], (4, 1))
    query = Query(0.7, None, False)
    expected = predict(hidden, table, query).argmax
    assert int(expected.max()) < 16
    for got in by_rows(4, hidden, table, replace(query, wants_soft=True)):
        assert mx.array_equal(got.argmax, expected) and mx.array_equal(got.proposal, expected)


def test_draws_fall_everywhere_as_often_as_they_should():
    hidden, table, _ = make(64, 1, sharpness=0.0)  # all ids alike
    u = mx.linspace(0, 0.999, B * C).reshape(B, C)
    for got in by_rows(4, hidden, table, Query(1.0, u, True)):
        assert np.abs(np.array(got.proposal) - 64 * np.array(u)).max() <= 1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (GenerationConfig(soft_embedding_cutoff=9.0), "soft_embedding_cutoff"),
        (GenerationConfig(settling=Settling(walk_every=3)), "walk_every"),
    ],
)
def test_what_needs_the_whole_table_is_refused_in_one_line(settings, name):
    def ask(ranks):
        with pytest.raises(DGemmaError, match=f"{name} needs the whole embedding table") as error:
            Engine.load(ranks=ranks).prepare(Request("roman 7", settings=settings))
        return str(error.value)

    assert "\n" not in in_threads(2, ask)[0]


def test_a_query_that_needs_the_whole_table_is_refused():
    hidden, table, _ = make(64, 1)
    with pytest.raises(DGemmaError, match="a cutoff or a shortlist"):
        by_rows(2, hidden, table, Query(1.0, None, True, cutoff=3.0))
