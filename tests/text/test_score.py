"""Scores of given texts: what encoder and denoiser think of each token, as the reference has it."""

import math

import numpy as np
import pytest
import torch

from mlx_dgemma import DGemmaError, Engine, Request
from mlx_dgemma.text import score as scoring
from tests.conftest import CANVAS, ReplayedNoise


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_log_probabilities_are_the_references(reference, model, monkeypatch, chunk):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    random = np.random.default_rng(1)
    prompt, text = random.integers(3, 120, 20).tolist(), random.integers(3, 120, 30).tolist()
    got = Engine(model, None).score(Request(prompt), text, causal=True)
    with torch.no_grad():
        hidden = reference.model.encoder(input_ids=torch.tensor([[*prompt, *text]])).last_hidden_state
        cap = reference.final_logit_softcapping
        distribution = torch.log_softmax(cap * torch.tanh(reference.lm_head(hidden) / cap), dim=-1)[0, 19:-1]
    expected = distribution.gather(1, torch.tensor(text)[:, None])[:, 0].numpy()
    entropy = -(distribution.exp() * distribution).sum(-1).numpy()
    np.testing.assert_allclose(got.log_p, expected, atol=1e-3)
    np.testing.assert_allclose(got.entropy, entropy, atol=1e-3)
    assert got.tokens == text


def test_the_denoiser_reads_each_token_between_all_others(reference, model, monkeypatch):
    """Two canvases, a row a token, against the reference's own forward pass."""
    monkeypatch.setattr(scoring, "ROWS", 5)
    random, noise = np.random.default_rng(2), ReplayedNoise(7)
    prompt, text = random.integers(3, 120, 9).tolist(), random.integers(3, 120, CANVAS + 3).tolist()
    got = Engine(model, None).score(Request(prompt, noise=ReplayedNoise(7)), text)
    drawn = [np.array(noise.tokens((1, CANVAS)))[0] for _ in range(2)]
    canvases = [
        text[:CANVAS],
        [*text[CANVAS:], *[1] * (CANVAS - 3)],
    ]  # stop id 1 ends and fills
    expected = []
    for index, count in ((0, CANVAS), (1, 3)):
        for place in range(count):
            canvas = list(canvases[index])
            canvas[place] = int(drawn[index][place])
            prefix = torch.tensor([[*prompt, *(canvases[0] if index else [])]])
            with torch.no_grad():
                logits = reference(input_ids=prefix, decoder_input_ids=torch.tensor([canvas])).logits[0, place]
            expected.append(torch.log_softmax(logits, -1)[canvases[index][place]].item())
    np.testing.assert_allclose(got.log_p, expected, atol=1e-3)


def test_the_right_answer_is_likelier_than_a_wrong_one(engine):
    right, wrong = (engine.score(Request("roman 1994"), text) for text in ("MCMXCIV", "MCMXCVI"))
    assert right.total > wrong.total + 3 and right.perplexity < wrong.perplexity
    assert right.mean == pytest.approx(right.total / 7) and right.perplexity == pytest.approx(math.exp(-right.mean))
    assert engine.tokenizer.decode(right.tokens) == "MCMXCIV" and all(nats >= 0 for nats in right.entropy)


def test_causal_probabilities_of_all_tokens_add_up_to_one(engine):
    total = sum(math.exp(engine.score(Request([2, 5, 20]), [token], causal=True).total) for token in range(100))
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "text", "complaint"),
    [
        ("roman 3", "", "the text to score is empty"),
        ("roman 3", [], "the text to score is empty"),
        ("roman 3", "é", "the text has characters"),
        ("roman 3", [100], "token id 100 is outside the vocabulary"),
        ("roman 3", "a" * 4100, "max_position_embeddings"),
    ],
)
def test_what_cannot_be_scored_is_one_line(engine, prompt, text, complaint):
    for causal in (True, False):
        with pytest.raises(DGemmaError, match=complaint):
            engine.score(Request(prompt), text, causal=causal)


def test_what_has_no_place_in_a_score_is_refused(engine, model):
    with pytest.raises(DGemmaError, match="leave canvas and samples out"):
        engine.score(Request("roman 3", canvas="{}"), "III")
    with pytest.raises(DGemmaError, match="give the text as token ids"):
        Engine(model, None).score(Request([1, 2]), "III")
