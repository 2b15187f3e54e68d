"""What a pass exchanges, and that one process' hidden states come out; real ranks are in tests/distributed."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import load
from mlx_dgemma.diffusion.shared import make_denoiser
from mlx_dgemma.diffusion.vocabulary import Query
from tests.distributed.published import write_published
from tests.distributed.threads import in_threads


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"))


def step(model):
    """Hidden states behind a prompt, and a step's exchanges."""
    cache = model.make_cache()
    mx.eval(model.encode(mx.array([list(range(40))]), cache), cache.arrays())
    canvas, denoiser = mx.array([list(range(50, 66))]), make_denoiser(model, cache)
    before = 0 if model.ranks is None else len(model.ranks.exchanged)
    hidden = denoiser.begin(canvas, None)
    told = denoiser.finish(hidden, Query(0.8, mx.full((1, 16), 0.3), True))
    mx.eval(hidden, told.proposal, told.soft)
    return np.array(hidden), [] if model.ranks is None else model.ranks.exchanged[before:]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["floats", "8 bits", "4 bits, attention 8", "mxfp4"])
def test_hidden_states_to_rounding_and_the_same_on_all_ranks(published, name, size):
    alone, _ = step(load(published[name])[0])
    ranks = in_threads(size, lambda ranks: step(load(published[name], ranks=ranks)[0])[0])
    for own in ranks:
        assert np.array_equal(own, ranks[0])
        np.testing.assert_allclose(own, alone, atol=1e-5 * np.abs(alone).max())


def test_what_a_step_exchanges(published):
    model = load(published["floats"])[0]
    row, layers = (1, 16, 64), len(model.config.layers)
    _, exchanged = in_threads(2, lambda ranks: step(load(published["floats"], ranks=ranks)[0]))[0]
    assert exchanged[0] == row  # embeddings
    assert exchanged[1 : 1 + 2 * layers] == [(1, *row), (2, *row)] * layers
    assert exchanged[1 + 2 * layers :] == [(1, 1, 16, 5), (1, 16), row]  # statistics, draws, soft embeddings
