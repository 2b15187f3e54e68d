"""What belongs to a text: padding does not, thoughts do not show, and what the model thought of each token stays."""

import math

import mlx.core as mx
import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request, load
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.vocabulary import from_logits
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.reply import Reply, ReplyParser

PAD, EOS = 0, 1


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


@pytest.fixture
def writes(engine, monkeypatch):
    """Makes the embedded model write these canvases, whatever it is asked; each as sure as `sharpness` says."""

    def script(*canvases: list[int], sharpness: float = 50.0):
        begun = []

        def begin(self, canvas, soft, slots=None):
            begun.append(self.cache.length)
            return canvas

        def finish(self, canvas, query):
            number = sorted(set(begun)).index(self.cache.length)
            ids = [*canvases[number], *[PAD] * (64 - len(canvases[number]))]
            logits = sharpness * (mx.array(ids)[None, :, None] == mx.arange(100)).astype(mx.float32)
            return from_logits(mx.broadcast_to(logits, (len(canvas), 64, 100)), query)

        monkeypatch.setattr(ModelDenoiser, "begin", begin)
        monkeypatch.setattr(ModelDenoiser, "finish", finish)
        monkeypatch.setattr(ModelDenoiser, "cancel", lambda self: None)

    return script


def ids(engine, text: str) -> list[int]:
    return engine.tokenizer.encode(text, add_special_tokens=False)


def test_padding_is_neither_text_nor_speed(engine, writes):
    writes(ids(engine, "ab"), [*ids(engine, "cd"), EOS])
    result = engine.generate(Request("upper x", settings=GenerationConfig(max_new_tokens=128)))
    assert (result.text, result.tokens, result.finish_reason) == ("abcd", ids(engine, "abcd"), "stop")
    assert result.stats.tokens == 4 and [len(canvas) for canvas in result.canvases] == [64, 64]
    assert result.stats.tokens_per_forward == 4 / result.stats.steps
    assert len(result.log_p) == len(result.entropy) == 4


def test_padding_inside_a_text_does_not_count_either(engine, writes):
    writes([*ids(engine, "a"), PAD, *ids(engine, "b"), EOS])
    result = engine.generate(Request("upper x"))
    assert result.text == "ab" and result.stats.tokens == 2
    assert result.tokens == [*ids(engine, "a"), PAD, *ids(engine, "b")]  # the first ones of the canvas


def test_a_canvas_of_nothing_but_padding_ends_the_text(engine, writes):
    writes(ids(engine, "ab"), [], ids(engine, "never"))
    result = engine.generate(Request("upper x", settings=GenerationConfig(max_new_tokens=192)))
    assert (result.text, result.finish_reason, len(result.canvases)) == ("ab", "stop", 2)


def test_padding_that_was_given_stays(engine):
    canvas = [*ids(engine, "ab"), PAD, PAD, *ids(engine, "c"), *[PAD] * 70]
    settings = GenerationConfig(eos_token_id=[], max_denoising_steps=1, max_new_tokens=1)
    result = engine.generate(Request("upper x", settings=settings, canvas=canvas))
    assert result.tokens == canvas and len(result.canvases) == 2


@pytest.mark.parametrize("samples", [1, 2])
def test_padding_that_the_model_has_no_opinion_of_is_an_error(engine, writes, samples):
    """What a GPU out of memory hands back: zeros, so that every token is as likely as any other."""
    writes([], sharpness=0.0)
    request = Request("upper x", samples=samples, settings=GenerationConfig(max_denoising_steps=3))
    with pytest.raises(DGemmaError, match="canvas 1 is nothing but padding, and the model is sure of none of it"):
        engine.generate(request) if samples == 1 else engine.samples(request)


def test_zeroed_weights_are_told():
    model, tokenizer = load()
    model.model.decoder.norm.weight = model.model.decoder.norm.weight * 0
    with pytest.raises(DGemmaError, match="nothing but padding"):
        Engine(model, tokenizer).generate(Request("spell 42"))


def test_log_probability_and_entropy_of_each_token(engine):
    request = Request("sudoku 1..4..1.2....3.1", seed=1)
    steps, texts = [], []
    for event in engine.stream(request):
        (steps if isinstance(event, DenoisingStep) else texts).append(event)
    result = engine.generate(request)
    count = len(result.tokens)
    assert isinstance(texts[0], TextCanvas) and count == 16
    assert list(result.log_p) == list(texts[0].log_p) == steps[-1].log_p[0].tolist()[:count]
    assert list(result.entropy) == list(texts[0].entropy) == steps[-1].entropy[0].tolist()[:count]
    assert all(nats <= 0 for nats in result.log_p) and all(0 <= nats < math.log(100) for nats in result.entropy)


def test_given_tokens_have_none(engine):
    result = engine.generate(Request("spell 1842", canvas="one thousand{}"))
    assert list(result.log_p[:12]) == list(result.entropy[:12]) == [0.0] * 12 and any(result.log_p[12:])
    whole = engine.generate(Request("spell 1842", canvas="one thousand eight hundred forty-two"))
    assert list(whole.log_p) == list(whole.entropy) == [0.0] * 36


def test_a_samples_tokens_have_those_of_the_step_that_settled_its_row(engine):
    samples = engine.samples(Request("sudoku 1...............", samples=4, seed=3))
    assert len({sample.result.stats.steps for sample in samples}) > 1  # rows are done at different steps
    for sample in samples:
        alone = engine.generate(Request("sudoku 1...............", seed=sample.seed))
        assert sample.result.log_p == pytest.approx(alone.log_p, abs=1e-4)
        assert sample.result.entropy == pytest.approx(alone.entropy, abs=1e-4)


class Thinking:
    """Letters by their code, and Gemma's two marks of a thought."""

    def get_vocab(self):
        return {"<|channel>": 256, "<channel|>": 257}

    def convert_ids_to_tokens(self, tokens):
        return [chr(token) for token in tokens]

    def decode(self, tokens, skip_special_tokens):
        return "".join(map(chr, tokens))


def test_a_thought_that_the_prompt_opened_does_not_show():
    for prompt, shown in (([2, 256, 65], "yes"), ([2, 256, 65, 257, 66], "hmyes"), ([65], "hmyes")):
        parser = ReplyParser(Thinking(), prompt=prompt)
        assert parser.add([*b"hm", 257, *b"yes"]).content == shown
        assert parser.thought_tokens == (3 if shown == "yes" else 1)


def test_a_thought_that_never_ends_is_counted():
    parser = ReplyParser(Thinking())
    assert parser.add([256, *b"hm"]) == Reply("", "hm") and parser.end(is_cut=True).content == ""
    assert parser.thought_tokens == 3
