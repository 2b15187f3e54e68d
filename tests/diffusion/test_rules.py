"""Strategies beside the published ones: what acceptance by history adds, and where a short anneal stands."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import Engine, GenerationConfig, Request, Settling
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.rules import ByHistory, ShortAnneal
from mlx_dgemma.diffusion.sampling import LinearSchedule, accept
from mlx_dgemma.diffusion.strategies import EarlierStep, Step

ENTROPY = mx.array([[0.05, 0.2, 0.25, 0.28, 0.5, 0.01]])
DRAFT = mx.array([[1, 2, 3, 4, 5, 6]])
LOG_P = mx.array([[-0.01, -0.1, -0.1, -0.1, -0.2, 0.0]])


def step(*earlier: EarlierStep) -> Step:
    nothing = mx.zeros_like(DRAFT)
    return Step(nothing, DRAFT, DRAFT, ENTROPY, LOG_P, ENTROPY.mean(axis=-1), None, 9, 48, 0.5, earlier)


def before(draft=DRAFT, log_p=LOG_P) -> EarlierStep:
    return EarlierStep(draft, ENTROPY, mx.zeros_like(DRAFT).astype(mx.bool_), log_p)


def test_without_history_it_is_the_entropy_bound():
    for earlier in ((), (before(),)):
        assert np.array_equal(ByHistory()(step(*earlier)), accept(ENTROPY, 0.1))


def test_what_has_not_moved_joins_by_entropy_up_to_its_own_bound():
    assert accept(ENTROPY, 0.1).tolist() == [[True, True, False, False, False, True]]
    calm = step(before(), before())
    assert ByHistory()(calm).tolist() == [[True, True, True, True, False, True]]  # 0.5 nats are too many for any
    assert ByHistory(extra=0.26)(calm).tolist() == [[True, True, True, False, False, True]]


def test_what_moved_does_not_join():
    other = mx.array([[1, 2, 9, 4, 5, 6]])
    assert not ByHistory()(step(before(), before(other)))[0, 2].item()
    assert not ByHistory()(step(before(other), before()))[0, 2].item()
    jumped = mx.array([[-0.01, -0.1, -0.1, -0.9, -0.2, 0.0]])
    assert not ByHistory()(step(before(), before(log_p=jumped)))[0, 3].item()


def test_a_short_anneal_reaches_its_end_and_stays():
    schedule = ShortAnneal(16, 0.4, 0.8)
    assert schedule(48, 48) == 0.8 and schedule(40, 48) == pytest.approx(0.6)
    assert schedule(32, 48) == schedule(20, 48) == schedule(1, 48) == 0.4


def test_confirming_steps_take_the_published_temperature():
    settings = GenerationConfig(temperature_schedule=ShortAnneal(8), settling=Settling())
    events = Engine.load().stream(Request("sudoku ............2431", settings=settings))
    steps = [event for event in events if isinstance(event, DenoisingStep)]
    last, published = steps[-1], LinearSchedule(0.4, 0.8)
    assert last.finished and last.temperature == published(last.remaining, 48)
    own = ShortAnneal(8)
    assert all(e.temperature == own(e.remaining, 48) for e in steps if e.computed is not None)
