"""The causal mode against the reference: its encoder and head, as reader of denoised canvases and as writer."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_dgemma import Engine, GenerationConfig, Request, load
from mlx_dgemma.diffusion.sampling import Sampler
from mlx_dgemma.model.prefill import chunks, prefill
from mlx_dgemma.text import causal, generation
from mlx_dgemma.text.causal import Causal
from mlx_dgemma.text.prefixes import PrefixStore
from tests.conftest import CANVAS, WINDOW, ReplayedNoise, random_reference

LENGTHS = [1, WINDOW - 1, WINDOW, WINDOW + 1, 4 * WINDOW]
SETTINGS = GenerationConfig(max_new_tokens=3 * CANVAS, max_denoising_steps=4, eos_token_id=[])


@torch.no_grad()
def reference_logits(reference, ids: list[int]) -> torch.Tensor:
    """What the reference's encoder expects behind each id, (T, V)."""
    hidden = reference.model.encoder(input_ids=torch.tensor([ids])).last_hidden_state
    cap = reference.final_logit_softcapping
    return cap * torch.tanh(reference.lm_head(hidden) / cap)[0]


def reference_greedy(reference, prompt: list[int], count: int) -> list[int]:
    """Whole passes and their argmax, token after token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(reference_logits(reference, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def restless(tmp_path_factory):
    """A random reference whose greedy texts do not stay at one token, as tied embeddings make them; and ours of it."""
    reference = random_reference(3)
    with torch.no_grad():
        reference.model.decoder.norm.weight *= torch.randn(64, generator=torch.Generator().manual_seed(3)).sign()
    path = tmp_path_factory.mktemp("restless")
    reference.save_pretrained(path)
    return reference, load(path)[0]


def prompt_of(length: int) -> list[int]:
    return [(11 * i + 3) % 120 for i in range(length)]


@pytest.mark.parametrize("prefixes", [None, PrefixStore()], ids=["alone", "remembered"])
@pytest.mark.parametrize("length", LENGTHS)
def test_what_was_denoised_is_as_likely_as_the_reference_says(reference, model, monkeypatch, length, prefixes):
    monkeypatch.setattr(causal, "CHUNK", 5)
    prompt = prompt_of(length)
    request = Request(prompt, settings=SETTINGS, noise=ReplayedNoise(length), causal_log_p=True)
    for _ in range(1 if prefixes is None else 2):  # a prompt that is remembered whole is read behind all the same
        got = Engine(model, None, prefixes=prefixes).generate(request)
        assert len(got.tokens) == 3 * CANVAS
        distribution = torch.log_softmax(reference_logits(reference, [*prompt, *got.tokens]), -1)[length - 1 : -1]
        expected = distribution.gather(1, torch.tensor(got.tokens)[:, None])[:, 0].numpy()
        assert expected.std() > 1  # far from uniform, or closeness would prove little
        np.testing.assert_allclose(got.causal_log_p, expected, atol=1e-3)
        assert got.mean_causal_log_p == pytest.approx(float(expected.mean()), abs=1e-3)


def test_reading_changes_nothing_and_costs_one_pass_a_canvas(model, monkeypatch):
    """Steps, canvases and figures are the same bit by bit; the last canvas alone is an extra pass."""
    encode, passes = type(model).encode, []
    monkeypatch.setattr(
        type(model), "encode", lambda self, ids, cache: (passes.append(ids.size), encode(self, ids, cache))[1]
    )
    results = []
    for reads in (False, True):
        passes.append("|")
        request = Request(prompt_of(30), settings=SETTINGS, noise=ReplayedNoise(3), causal_log_p=reads)
        results.append(Engine(model, None).generate(request))
    plain, read = results
    assert (plain.canvases, plain.log_p, plain.entropy) == (read.canvases, read.log_p, read.entropy)
    assert plain.causal_log_p == () and plain.mean_causal_log_p is None
    assert passes == ["|", 30, *[CANVAS] * 2, "|", 30, *[CANVAS] * 3]


def test_reading_leaves_the_prefix_that_stitching_leaves_and_bounds_the_head(model, monkeypatch):
    monkeypatch.setattr(causal, "CHUNK", 5)
    logits, rows = type(model).logits, []
    monkeypatch.setattr(type(model), "logits", lambda self, h: (rows.append(h.shape[1]), logits(self, h))[1])
    engine = Engine(model, None)
    prefix = engine.prepare(Request(prompt_of(20), causal_log_p=True)).prefix()
    reader = Causal(
        engine.prepare(Request(prompt_of(20), causal_log_p=True)), prefix.cache, ReplayedNoise(0), prefix.last
    )
    stitched = model.make_cache()
    prefill(model, mx.array([prompt_of(20)]), stitched)
    for start in range(2):
        canvas = [(11 * i + start) % 120 for i in range(CANVAS)]
        for _ in reader.read(canvas):
            pass
        for _ in chunks(model, mx.array([canvas]), stitched):
            pass
    assert reader.cache.length == stitched.length == 20 + 2 * CANVAS
    for ours, theirs in zip(reader.cache.layers, stitched.layers, strict=True):
        assert ours.length == theirs.length
        for a, b in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert mx.array_equal(a[:, :, : ours.length], b[:, :, : ours.length])
    assert max(rows) == 5 and sum(rows) == 2 * CANVAS


@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_is_the_references_argmax_token_for_token(restless, length):
    reference, model = restless
    settings = GenerationConfig(max_new_tokens=5 * WINDOW + 3, token_choice="argmax", eos_token_id=[])
    request = Request(prompt_of(length), settings=settings, mode="causal", causal_log_p=True)
    got = Engine(model, None).generate(request)
    expected = reference_greedy(reference, prompt_of(length), 5 * WINDOW + 3)
    assert got.tokens == expected and len(set(expected)) > 10
    assert (got.finish_reason, got.steps_per_canvas, got.canvases) == ("length", [0], [expected])
    distribution = torch.log_softmax(reference_logits(reference, [*prompt_of(length), *expected]), -1)[length - 1 : -1]
    np.testing.assert_allclose(got.causal_log_p, distribution.max(-1).values.numpy(), atol=1e-3)


def test_draws_are_the_references_distribution_at_the_last_temperature(restless):
    """The same uniform numbers, one a token, through the reference's own distribution at t."""
    reference, model = restless
    settings = GenerationConfig(max_new_tokens=30, t_min=0.9, t_max=1.5, max_denoising_steps=12, eos_token_id=[])
    request = Request(prompt_of(9), settings=settings, noise=ReplayedNoise(5), mode="causal", alternatives=4)
    got = Engine(model, None).generate(request)
    temperature = Sampler.of(settings).temperature_at(1, 12)
    assert temperature == pytest.approx(0.95)
    noise, ids = ReplayedNoise(5, convert=torch.tensor), prompt_of(9)
    for at, token in enumerate(got.tokens):
        log_p = torch.log_softmax(reference_logits(reference, ids)[-1] / temperature, -1)
        drawn = int((log_p.exp().cumsum(-1) < noise.uniform((1, 1))[0]).sum())
        assert token == drawn
        assert got.log_p[at] == pytest.approx(float(log_p[token]), abs=1e-3)
        assert got.entropy[at] == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-3)
        likeliest = log_p.topk(4)
        assert [own for own, _ in got.alternatives[at]] == likeliest.indices.tolist()
        assert [nats for _, nats in got.alternatives[at]] == pytest.approx(likeliest.values.tolist(), abs=1e-3)
        ids.append(token)
    assert len(set(got.tokens)) > 10


def test_a_canvas_is_continued_causally_and_denoised_again_behind_that(restless, monkeypatch):
    """Mode "auto": canvas, eight tokens, canvas; each behind all that came before, and in step with the noise."""
    reference, model = restless
    monkeypatch.setattr(generation, "is_rewritten", lambda **_: False)
    monkeypatch.setattr(generation, "goes_causal", lambda denoised, causal: False)
    prompt, noise = prompt_of(11), ReplayedNoise(6)
    settings = GenerationConfig(
        max_new_tokens=2 * CANVAS + 8, max_denoising_steps=4, token_choice="argmax", eos_token_id=[]
    )
    auto = Engine(model, None).generate(Request(prompt, settings=settings, noise=ReplayedNoise(6), mode="auto"))
    ids = list(prompt)
    for part in range(3):
        if part == 1:
            ids += reference_greedy(reference, ids, 8)
            continue
        one = GenerationConfig(max_new_tokens=CANVAS, max_denoising_steps=4, token_choice="argmax", eos_token_id=[])
        ids += Engine(model, None).generate(Request(ids, settings=one, noise=noise)).tokens
    assert auto.tokens == ids[len(prompt) :]
    assert [len(canvas) for canvas in auto.canvases] == [CANVAS, 8, CANVAS]
    assert auto.steps_per_canvas[1] == 0 and auto.stats.causal_tokens == 8 and auto.stats.canvases == 3
