"""Some positions of a canvas: a partial pass is a full one in which the others keep earlier keys and values.

The twin computes all positions behind a prefix of its own and puts earlier keys and values in place of the new ones,
layer by layer, by a mask; it knows nothing of slots, and its positions follow one another.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dgemma import load
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.vocabulary import Query
from mlx_dgemma.model import memory
from mlx_dgemma.model.attention import Place
from mlx_dgemma.model.cache import LayerCache, PrefixCache, Slots
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.model.scores import attend_all
from tests.conftest import CANVAS, VOCABULARY, WINDOW

TOLERANCE = 1e-5  # of the range of what is compared
SETS = ([0, 1, 2], [3, 7, 8, 15], [5], list(range(0, CANVAS, 2)), list(range(CANVAS)), [1, 2, 14])  # pass after pass
SHORT, LONG = WINDOW - 3, 3 * WINDOW + 1
Layers = list[tuple[mx.array, mx.array]]


@pytest.fixture(scope="module")
def quantized(folder):
    own = load(folder)[0]
    nn.quantize(own, group_size=32, bits=8)
    return own


class Twin:
    """Full passes over a prefix that is only read; keys and values of the canvas, by layer, are its own."""

    def __init__(self, model: DiffusionGemma, cache: PrefixCache):
        self.model, self.length = model, cache.length
        self.prefix: Layers = [prefix_of(layer) for layer in cache.layers]
        self.kept: Layers = []

    def hidden(self, canvas: mx.array, soft: mx.array, active: mx.array) -> mx.array:
        """(B, C, H) over ids (B, C), of which the active ones (C,) count."""
        decoder, new = self.model.model.decoder, []
        h = decoder.self_conditioning.mixed(self.model._embed(canvas), soft)
        for i, layer in enumerate(decoder.layers):

            def extend(k: mx.array, v: mx.array, i: int = i) -> tuple[mx.array, mx.array]:
                if self.kept:
                    k, v = (mx.where(active[:, None], a, old) for a, old in zip((k, v), self.kept[i], strict=True))
                new.append((k, v))
                keys, values = self.prefix[i]
                return mx.concatenate([keys, k], axis=2), mx.concatenate([values, v], axis=2)

            h = layer(h, [Place(self.length, extend, attend_all)], layer.layer_scalar)
        self.kept = new
        return decoder.norm(h)


def prefix_of(layer: LayerCache) -> tuple[mx.array, mx.array]:
    """Copies of what a layer holds of its prefix."""
    keys, values = (mx.array(np.array(a[:, :, : layer.length])) for a in (layer.keys, layer.values))
    return keys, values


def canvas_of(cache: PrefixCache) -> list[np.ndarray]:
    """The canvas' keys and values, layer by layer."""
    pairs = [(layer, a) for layer in cache.layers for a in (layer.keys, layer.values)]
    return [np.array(a[:, :, layer.length : layer.length + CANVAS]) for layer, a in pairs]


def behind(model: DiffusionGemma, lengths: Sequence[int], batch: int) -> list[PrefixCache]:
    """A prefix of so many rows, of each length."""
    rng, caches = np.random.default_rng(len(lengths)), []
    for length in lengths:
        cache = model.make_cache()
        prefill(model, mx.array(rng.integers(0, VOCABULARY, (batch, length))), cache)
        caches.append(cache)
    return caches


def assert_close(own: np.ndarray, twins: np.ndarray) -> None:
    assert own.shape == twins.shape
    assert np.abs(own - twins).max() <= TOLERANCE * (twins.max() - twins.min())


def check_passes(model: DiffusionGemma, caches: list[PrefixCache], batch: int) -> None:
    """A full pass and partial ones against the twin; one prefix of all rows, or one of each."""
    twins, rng = [Twin(model, cache) for cache in caches], np.random.default_rng(7)
    prefixes = [[np.array(a) for pair in twin.prefix for a in pair] for twin in twins]
    for step, at in enumerate((None, *SETS)):
        canvas = mx.array(rng.integers(0, VOCABULARY, (batch, CANVAS)))
        soft = mx.array(rng.normal(size=(batch, CANVAS, model.config.hidden_size)).astype(np.float32))
        rows = list(range(CANVAS)) if at is None else at
        before = [canvas_of(cache) for cache in caches] if step else []
        slots = None if at is None else Slots(mx.array(rows), CANVAS)
        hidden = model.denoise_hidden(canvas[:, mx.array(rows)], caches, soft[:, mx.array(rows)], slots)
        mx.eval(hidden, [cache.arrays() for cache in caches])
        active = mx.array([i in rows for i in range(CANVAS)])
        share = batch // len(caches)
        for i, (twin, cache) in enumerate(zip(twins, caches, strict=True)):
            mine = slice(i * share, (i + 1) * share)
            expected = twin.hidden(canvas[mine], soft[mine], active)
            assert_close(np.array(hidden[mine]), np.array(expected)[:, rows])
            for own, theirs in zip(canvas_of(cache), (a for pair in twin.kept for a in pair), strict=True):
                assert_close(own, np.array(theirs))
            untouched = [position for position in range(CANVAS) if position not in rows]
            for own, was in zip(canvas_of(cache), before[i] if before else [], strict=bool(before)):
                assert np.array_equal(own[:, :, untouched], was[:, :, untouched])
                assert not np.array_equal(own[:, :, rows], was[:, :, rows])
            now = [np.array(a) for layer in cache.layers for a in prefix_of(layer)]
            assert all(np.array_equal(a, b) for a, b in zip(now, prefixes[i], strict=True))


@pytest.mark.parametrize("weights", ["model", "quantized"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [SHORT, LONG])
def test_a_partial_pass_is_a_full_one_with_earlier_keys_and_values(request, weights, batch, length):
    model = request.getfixturevalue(weights)
    kinds = {layer.window for layer in model.config.layers}
    assert kinds == {None, WINDOW}  # full layers and sliding ones
    check_passes(model, behind(model, [length], batch), batch)


def test_rows_behind_prefixes_of_their_own_too(model):
    check_passes(model, behind(model, [SHORT, LONG], 1), 2)


def test_a_partial_pass_over_every_position_is_a_full_pass(model):
    caches = behind(model, [LONG], 1) + behind(model, [LONG], 1)
    canvas = mx.array([[(3 * i) % VOCABULARY for i in range(CANVAS)]])
    for cache in caches:
        mx.eval(model.denoise_hidden(canvas + 1, [cache]))
    whole = np.array(model.denoise_hidden(canvas, caches[:1]))
    assert_close(np.array(model.denoise_hidden(canvas, caches[1:], None, Slots(mx.arange(CANVAS), CANVAS))), whole)


def test_the_twin_tells_a_stale_key_from_a_new_one(model):
    """What all this rests on: a pass in which other positions are new is another pass."""
    cache = behind(model, [LONG], 1)[0]
    twin, soft = Twin(model, cache), mx.zeros((1, CANVAS, model.config.hidden_size))
    ids, everything = mx.array([[5] * CANVAS]), mx.ones((CANVAS,), mx.bool_)
    twin.hidden(ids + 20, soft, everything)
    stale = np.array(twin.hidden(ids, soft, mx.arange(CANVAS) < 4))[:, :4]
    new = np.array(twin.hidden(ids, soft, everything))[:, :4]
    assert np.abs(stale - new).max() > 1e3 * TOLERANCE * (new.max() - new.min())


@given(
    st.sampled_from([None, 1, 7]),
    st.integers(0, 12),
    st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=4),
)
def test_an_overlay_of_slots_against_a_plain_list(window, length, sets):
    def some(count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(2, 2, 3, count, 4)).astype(np.float32)  # keys and values

    layer, prefix, whole = LayerCache(window), some(length, 0), some(10, 1)
    if length:
        layer.append(*map(mx.array, prefix))
    prefix = prefix[:, :, :, length - layer.length :]
    layer.overlay(*map(mx.array, whole))
    for seed, chosen in enumerate(sets, 2):
        at, new = sorted(chosen), some(len(chosen), seed)
        whole[:, :, :, at] = new
        seen = layer.overlay(*map(mx.array, new), Slots(mx.array(at), 10))
        assert all(np.array_equal(s, np.concatenate([p, w], 2)) for s, p, w in zip(seen, prefix, whole, strict=True))
        assert layer.length == prefix.shape[3]


def step(denoiser: ModelDenoiser, seed: int, soft: mx.array | None, slots: Slots | None) -> mx.array:
    """One denoising step as the loop makes it; returns the soft embeddings."""
    ids = mx.array([[3 + seed] * (CANVAS if slots is None else slots.at.size)])
    found = denoiser.finish(denoiser.begin(ids, soft, slots), Query(0.7, None, wants_soft=True))
    memory.finish([found.argmax, found.entropy, found.soft])
    return found.soft


def test_a_partial_pass_writes_in_place(model):
    """Every buffer still lies where it lay: neither the prefix nor the rest of the canvas is copied."""

    def addresses() -> list[int]:
        return [np.array(a, copy=False).__array_interface__["data"][0] for a in cache.arrays()]

    cache = behind(model, [480], 1)[0]
    denoiser = ModelDenoiser(model, cache)
    soft = step(denoiser, 0, None, None)  # the first one may make room
    before = addresses()
    for seed, at in enumerate(SETS, 1):
        step(denoiser, seed, soft[:, mx.array(at)], Slots(mx.array(at), CANVAS))
    step(denoiser, 9, soft, None)
    assert addresses() == before


@pytest.mark.parametrize("window", [None, 4096])
def test_no_prefix_is_copied_on_the_way(window):
    """By memory, behind a prefix that is large beside the canvas."""
    prefix, canvas, heads, dim = 4000, 16, 8, 128
    cache, at = LayerCache(window), mx.array([1, 5, 6, 15])
    cache.append(mx.zeros((1, heads, prefix, dim)), mx.zeros((1, heads, prefix, dim)))
    cache.overlay(mx.zeros((1, heads, canvas, dim)), mx.zeros((1, heads, canvas, dim)))
    mx.eval(cache.keys, cache.values)
    new = mx.ones((1, heads, at.size, dim))
    mx.eval(new, at)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(3):
        keys, values = cache.overlay(new, new, Slots(at, canvas))
        total = keys[:, :, -canvas:].sum() + values[:, :, -canvas:].sum()
        del keys, values
        mx.eval(total, cache.keys, cache.values)
        assert total.item() == 2 * heads * at.size * dim
    assert mx.get_peak_memory() - before < cache.keys.nbytes / 4
