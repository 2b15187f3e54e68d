"""Values that no request takes: each is refused by name, before any work."""

import json

import numpy as np
import pytest

from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.text.prompts import MANY
from tests.fuzz import small

HUGE = 10**400  # larger than any float


@pytest.fixture(scope="module")
def engine():
    return small.engine()


def refused(ask) -> str:
    with pytest.raises(DGemmaError) as error:
        ask()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("value", [5, 1.5, None, b"ab", {1}, {"a": 1}, iter("a"), ...], ids=repr)
def test_what_is_no_canvas(value):
    assert "canvas: given is a" in refused(lambda: Request("a", canvas=value))
    assert "canvas: draft is a" in refused(lambda: CanvasPlan(draft=value))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"noise": "x"}, "share of noise is 'x'"), ({"noise": True}, "share of noise is True"),
        ({"seed": "x"}, "seed must be an integer"), ({"seed": [1]}, "seed must be an integer"),
    ],
)  # fmt: skip
def test_what_is_no_plan(fields, named):
    assert named in refused(lambda: CanvasPlan("a", "b", **fields))


@pytest.mark.parametrize("value", ["no", 1, None])
def test_whether_is_true_or_false(value):
    assert "chat_template must be True or False" in refused(lambda: Request("a", chat_template=value))


@pytest.mark.parametrize("noise", ["noise", 5, object(), [1]])
def test_what_is_no_noise(engine, noise):
    assert "give an object with tokens and uniform" in refused(lambda: engine.prepare(Request("a", noise=noise)))


@pytest.mark.parametrize("calls", [5, "x", {"a": 1}, True])
def test_what_are_no_tool_calls(engine, calls):
    messages = [{"role": "assistant", "content": "a", "tool_calls": calls}]
    assert "tool_calls is a" in refused(lambda: engine.prepare(Request(messages)))


@pytest.mark.parametrize(
    "text", [5, None, True, b"ab", [1.5], [True], [[1]], ["a"], [np.int32(5)], {"a": 1}, [100], [-1]], ids=repr
)
def test_what_is_no_text_to_score(engine, text):
    refused(lambda: engine.score(Request("a"), text))


@pytest.mark.parametrize("template", [5, None, ["{?}"], b"{?}"], ids=repr)
def test_what_is_no_template(engine, template):
    assert "template: it is a" in refused(lambda: engine.choose(Request("a"), template, ["a", "b"]))


@pytest.mark.parametrize("labels", [5, None, {"a", "b"}, True])
def test_what_are_no_labels(engine, labels):
    refused(lambda: engine.choose(Request("a"), "{?}", labels))
    refused(lambda: engine.choose_each(Request("a"), "{?}", labels))


def test_labels_outside_the_models_vocabulary(tmp_path):
    folder = small.copy(tmp_path)
    extra = {"extra_special_tokens": ["<new>"], **json.loads((folder / "tokenizer_config.json").read_text())}
    (folder / "tokenizer_config.json").write_text(json.dumps(extra))
    engine = Engine.load(folder)
    for template, labels in (("{?}", ["a", "<new>"]), ("<new>{?}", ["a", "b"])):
        told = refused(lambda template=template, labels=labels: engine.choose(Request("a"), template, labels))
        assert "token id 100 is outside the vocabulary" in told


def test_more_samples_than_a_float_can_count(engine):
    assert "samples take about" in refused(lambda: engine.samples(Request("a", samples=HUGE)))


@pytest.mark.parametrize("name", ["max_denoising_steps", "max_new_tokens", "t_min", "t_max", "soft_embedding_cutoff"])
def test_settings_beyond_any_float(name):
    assert name in refused(lambda: GenerationConfig(**{name: HUGE}))


def test_not_each_of_many_unknown_characters_is_looked_at(engine, monkeypatch):
    tokenizer, encoded = engine.tokenizer, []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **options: encoded.append(text) or encode(text, **options))
    strange = "".join(map(chr, range(0x10000, 0x10000 + 3 * MANY)))
    told = refused(lambda: engine.prepare(Request(strange, chat_template=False)))
    assert f"and {MANY - 5} or more" in told and len(encoded) == MANY + 1
