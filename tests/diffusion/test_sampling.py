"""Properties of the sampler functions, and each against a plain NumPy twin."""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.noise import SeededNoise

# Multiples of 1/64: sums are exact in float32, so that properties hold without tolerances.
ENTROPIES = st.integers(1, 24).flatmap(lambda n: arrays(np.int64, n, elements=st.integers(0, 320), unique=True))
BOUNDS = st.integers(0, 1000).map(lambda i: i / 64 + 1 / 128)
LOGITS = arrays(np.float32, (2, 3, 17), elements=st.floats(-40, 40, width=32))


def accept(entropy: np.ndarray, bound: float) -> np.ndarray:
    return np.array(sampling.accept(mx.array((entropy / 64).astype(np.float32))[None], bound))[0]


@given(ENTROPIES, BOUNDS)
def test_the_lowest_entropy_position_is_always_accepted(entropy, bound):
    assert accept(entropy, bound)[entropy.argmin()]


@given(ENTROPIES, BOUNDS)
def test_the_bound_holds_and_is_used_up(entropy, bound):
    accepted = accept(entropy, bound)
    values = np.sort(entropy[accepted]) / 64
    assert values[:-1].sum() <= bound
    if not accepted.all():
        rest = entropy[~accepted] / 64
        assert rest.min() > values[-1]  # lowest first
        assert values.sum() > bound  # one more would break it


@given(ENTROPIES, BOUNDS, BOUNDS)
def test_raising_the_bound_never_accepts_fewer(entropy, a, b):
    fewer, more = accept(entropy, min(a, b)), accept(entropy, max(a, b))
    assert (more | ~fewer).all()


@given(ENTROPIES, BOUNDS, st.randoms(use_true_random=False))
def test_permuting_positions_permutes_the_result(entropy, bound, random):
    order = list(range(len(entropy)))
    random.shuffle(order)
    assert (accept(entropy[order], bound) == accept(entropy, bound)[order]).all()


@given(LOGITS)
def test_rows_are_independent(logits):
    entropy = sampling.token_entropy(sampling.log_probabilities(mx.array(logits)))
    both = np.array(sampling.accept(entropy, 0.5))
    alone = np.array(sampling.accept(entropy[1:], 0.5))
    assert (both[1:] == alone).all()


@given(LOGITS)
def test_entropy_is_that_of_softmax(logits):
    wide = logits.astype(np.float64)
    p = np.exp(wide - wide.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    entropy = np.array(sampling.token_entropy(sampling.log_probabilities(mx.array(logits))))
    np.testing.assert_allclose(entropy, expected, atol=2e-5)


def test_entropy_of_certainty_is_zero_and_of_ignorance_is_log_v():
    certain = mx.array([[[0.0, 1000.0, 0.0]]])
    assert sampling.token_entropy(sampling.log_probabilities(certain)).item() == 0
    uniform = mx.zeros((1, 1, 50))
    np.testing.assert_allclose(
        sampling.token_entropy(sampling.log_probabilities(uniform)).item(), np.log(50), rtol=1e-6
    )


@given(LOGITS, arrays(np.float32, (2, 3), elements=st.floats(0, 1, width=32, exclude_max=True)))
def test_draw_is_the_smallest_id_whose_cumulative_probability_reaches_u(logits, u):
    log_p = sampling.log_probabilities(mx.array(logits))
    drawn = np.array(sampling.draw(log_p, mx.array(u)))
    p = np.exp(np.array(log_p, dtype=np.float64))
    cumulative = np.concatenate([np.zeros((2, 3, 1)), p.cumsum(-1)], axis=-1) / p.sum(-1, keepdims=True)
    below = np.take_along_axis(cumulative, drawn[..., None], -1)[..., 0]
    reached = np.take_along_axis(cumulative, drawn[..., None] + 1, -1)[..., 0]
    assert (reached >= u - 1e-5).all()
    assert ((below < u + 1e-5) | (drawn == 0)).all()


def test_draw_never_leaves_the_vocabulary_nor_picks_what_cannot_be():
    logits = mx.array([[[0.0, 0.0, 0.0, -200.0]]])
    almost_one = mx.array([[1 - 2**-24]])
    assert sampling.draw(sampling.log_probabilities(logits), almost_one).item() == 2


def test_draws_follow_the_distribution():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    u = mx.array((np.arange(10_000, dtype=np.float32) + 0.5) / 10_000)[None]
    drawn = np.array(sampling.draw(mx.broadcast_to(mx.array(np.log(p)), (1, 10_000, 4)), u))
    np.testing.assert_allclose(np.bincount(drawn[0]) / 10_000, p, atol=2e-4)


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_renoise_keeps_what_was_accepted(seed):
    key = mx.random.key(seed)
    proposal, noise = mx.random.randint(0, 50, (1, 9), key=key), mx.random.randint(50, 99, (1, 9), key=key)
    accepted = mx.random.bernoulli(0.5, (1, 9), key=key)
    canvas = np.array(sampling.renoise(proposal, accepted, noise))
    assert ((canvas < 50) == np.array(accepted)).all()
    assert (canvas == np.where(np.array(accepted), np.array(proposal), np.array(noise))).all()


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=20)
def test_one_seed_one_noise(seed):
    a, b = SeededNoise(seed, 100), SeededNoise(seed, 100)
    for _ in range(2):
        tokens, uniform = a.tokens((2, 8)), a.uniform((2, 8))
        assert mx.array_equal(tokens, b.tokens((2, 8))) and mx.array_equal(uniform, b.uniform((2, 8)))
        assert tokens.min().item() >= 0 and tokens.max().item() < 100
        assert uniform.min().item() >= 0 and uniform.max().item() < 1


def test_successive_draws_and_other_seeds_differ():
    noise = SeededNoise(0, 1000)
    first, second, other = noise.tokens((64,)), noise.tokens((64,)), SeededNoise(1, 1000).tokens((64,))
    assert not mx.array_equal(first, second) and not mx.array_equal(first, other)
