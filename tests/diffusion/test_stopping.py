"""Adaptive stopping against the reference's criterion, step by step."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.diffusion_gemma.generation_diffusion_gemma import StableAndConfidentStoppingCriteria

from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.stopping import StableAndConfident, is_stable
from mlx_dgemma.diffusion.strategies import EarlierStep, Step


class Canvas:
    """Shows a rule one step of a canvas after the other."""

    def __init__(self, rule: StableAndConfident):
        self.rule, self.earlier = rule, ()

    def __call__(self, draft: mx.array, mean_entropy: mx.array) -> mx.array:
        nothing = mx.zeros(draft.shape)
        step = Step(draft, draft, draft, nothing, nothing, mean_entropy, None, 1, 1, 1.0, self.earlier)
        self.earlier = (*self.earlier, EarlierStep(draft, nothing, nothing, nothing))
        return self.rule(step)


@given(
    st.integers(0, 3),
    st.floats(0.1, 1.5),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([1.0, 4.0, 9.0])), min_size=1, max_size=8),
)
def test_same_decisions_as_the_reference(stability, confidence, steps):
    ours = Canvas(StableAndConfident(stability, confidence))
    theirs = StableAndConfidentStoppingCriteria(stability, confidence)
    for first, second, sharpness in steps:
        argmax = np.array([[first, 2], [second, 2]])  # two rows, each free to change
        logits = (sharpness * np.eye(3)[argmax]).astype(np.float32)
        entropy = sampling.token_entropy(sampling.log_probabilities(mx.array(logits)))
        decision = np.array(ours(mx.array(argmax), entropy.mean(axis=-1)))
        assert (decision == theirs(torch.tensor(argmax), torch.tensor(logits)).numpy()).all()


def test_stability_of_one_means_two_equal_canvases():
    stop = Canvas(StableAndConfident(stability_threshold=1, confidence_threshold=0.005))
    canvas, sure = mx.array([[1, 2]]), mx.zeros((1,))
    assert not stop(canvas, sure).item()
    assert stop(canvas, sure).item()
    assert not stop(mx.array([[1, 3]]), sure).item()


def test_confidence_is_strictly_below_the_threshold():
    for entropy, stops in ((0.25, False), (0.125, True)):
        stop = Canvas(StableAndConfident(stability_threshold=0, confidence_threshold=0.25))
        assert stop(mx.array([[1, 2]]), mx.full((1,), entropy)).item() is stops


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_it_looks_back_as_far_as_its_threshold(threshold):
    same, other = mx.array([[1]]), mx.array([[2]])
    earlier = [other, *[same] * threshold]
    assert is_stable(same, earlier, threshold).item()
    assert not is_stable(same, earlier, threshold + 1).item()
    assert not is_stable(same, earlier[1:], threshold + 1).item()  # as many predecessors are not there
