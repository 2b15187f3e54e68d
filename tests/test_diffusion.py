"""The canvas loop with a made-up denoiser: order of draws, events, stopping, what is committed."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import GenerationConfig
from mlx_dgemma.diffusion import CommittedCanvas, DenoisingStep, denoise_canvas, generate_canvases, prefill
from mlx_dgemma.vocabulary import from_logits
from tests.conftest import CANVAS, ReplayedNoise

SHAPE, V = (1, 6), 10


def sure_of(target: list[int], sharpness: float = 50.0):
    """A denoiser that knows the answer, whatever it is shown."""
    logits = sharpness * (mx.array(target)[None, :, None] == mx.arange(V)).astype(mx.float32)
    return lambda canvas, previous: mx.broadcast_to(logits, (canvas.shape[0], *logits.shape[1:]))


def steps(logits_of, noise=None, shape=SHAPE, **settings) -> list[DenoisingStep]:
    """A whole canvas with a function from canvas and previous tempered logits to logits."""

    def denoiser(canvas, previous, query):
        logits = logits_of(canvas, previous)
        return from_logits(logits, query, soft=logits / query.temperature)

    return list(denoise_canvas(denoiser, GenerationConfig(**settings), noise or ReplayedNoise(0, V), shape))


def test_a_sure_denoiser_needs_two_steps():
    events = steps(sure_of([1, 2, 3, 4, 5, 6]))
    assert [e.step for e in events] == [1, 2]
    assert [e.finished for e in events] == [False, True]
    assert events[-1].draft.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert events[1].canvas.tolist() == [[1, 2, 3, 4, 5, 6]]  # all were accepted
    assert events[0].accepted_count == 6


def test_temperature_goes_from_t_max_towards_t_min():
    events = steps(lambda c, p: mx.zeros((*c.shape, V)), max_denoising_steps=4, t_max=0.8, t_min=0.4)
    np.testing.assert_allclose([e.temperature for e in events], [0.8, 0.7, 0.6, 0.5])
    assert [e.remaining for e in events] == [4, 3, 2, 1]


def test_self_conditioning_gets_what_the_previous_step_left():
    seen = []

    def denoiser(canvas, previous):
        seen.append(previous)
        return mx.full((*canvas.shape, V), float(len(seen)))

    events = steps(denoiser, max_denoising_steps=3)
    assert seen[0] is None
    for index, previous in enumerate(seen[1:]):
        np.testing.assert_allclose(np.array(previous), (index + 1) / events[index].temperature, rtol=1e-6)


@pytest.mark.parametrize(("choice", "per_step"), [("categorical", ["uniform", "tokens"]), ("argmax", ["tokens"])])
def test_order_of_draws(choice, per_step):
    noise = ReplayedNoise(0, V)
    count = len(steps(sure_of([1] * 6), noise, token_choice=choice))
    assert noise.draws == ["tokens", *per_step * count]


def test_nothing_is_frozen():
    """A position that was accepted is renoised as soon as it becomes unsure."""
    canvases = []

    def denoiser(canvas, previous):
        canvases.append(canvas.tolist()[0])
        sharp = 50.0 if len(canvases) == 1 else 0.0
        return mx.concatenate([mx.zeros((1, 5, V)), sharp * (mx.arange(V) == 9)[None, None]], axis=1)

    events = steps(denoiser, max_denoising_steps=3, entropy_bound=0.001)
    assert canvases[1][5] == 9 and events[0].accepted[0, 5].item()
    assert not all(e.accepted[0, 5].item() for e in events[1:])


def test_rows_of_a_batch_finish_on_their_own():
    """Row 0 is sure from the start, row 1 changes its mind at every step but the last two: row 0 keeps its draft."""
    calls = []

    def denoiser(canvas, previous):
        calls.append(1)
        second = [min(len(calls), 4)] * 6
        first = [1] * 6 if len(calls) <= 2 else [7] * 6
        return 50.0 * (mx.array([first, second])[..., None] == mx.arange(V)).astype(mx.float32)

    events = steps(denoiser, shape=(2, 6))
    assert events[-1].draft.tolist() == [[1] * 6, [4] * 6]
    assert len(events) == 5


def test_one_host_read_a_step(monkeypatch):
    """Besides the one evaluation per step nothing in the loop asks for a value."""
    evaluations = []
    real = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *a: (evaluations.append(1), real(*a))[1])
    events = steps(lambda c, p: mx.zeros((*c.shape, V)), max_denoising_steps=5)
    assert len(evaluations) == len(events) == 5


def test_canvases_are_stitched_between_commits(model):
    cache = model.make_cache()
    prefill(model, mx.array([[1, 2, 3]]), cache)
    config = GenerationConfig(max_denoising_steps=2)
    lengths = []
    for event in generate_canvases(model, cache, config, ReplayedNoise(0), max_canvases=3):
        if isinstance(event, CommittedCanvas):
            lengths.append(cache.length)
    assert lengths == [3, 3 + CANVAS, 3 + 2 * CANVAS]  # committed first, encoded when the next one begins


def test_generation_ends_where_the_positions_do(model):
    room = model.config.max_position_embeddings
    cache = model.make_cache()
    prefill(model, mx.array([[1] * (room - CANVAS - 3)]), cache)
    events = generate_canvases(model, cache, GenerationConfig(max_denoising_steps=1), ReplayedNoise(0), max_canvases=9)
    assert sum(isinstance(e, CommittedCanvas) for e in events) == 1


def test_denoising_leaves_the_prefix_as_it_was(model):
    cache = model.make_cache()
    prefill(model, mx.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]), cache)
    before = [np.array(layer.keys[:, :, : layer.length]) for layer in cache.layers]
    mx.eval(model.denoise(mx.array([[3] * CANVAS]), cache))
    after = [np.array(layer.keys[:, :, : layer.length]) for layer in cache.layers]
    assert cache.length == 10
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_step_copies_the_prefix(model):
    """Canvas keys and values are written in place: after a step every buffer still lies where it lay."""

    def addresses() -> list[int]:
        return [np.array(a, copy=False).__array_interface__["data"][0] for a in cache.arrays()]

    cache = model.make_cache()
    prefill(model, mx.array([[5] * 480]), cache)
    previous = None
    for step in range(4):
        canvas = mx.array([[3 + step] * CANVAS])
        previous = model.denoise(canvas, cache, previous)
        mx.eval(previous)
        if step == 0:  # the first one may make room
            before = addresses()
    assert addresses() == before
