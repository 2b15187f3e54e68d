"""Answers of a given form: with a scripted model that knows it, with one that does not, and as far as none can."""

import json
import os
import random

import jsonschema
import mlx.core as mx
import pytest

from benchmarks.schemas import Schemas
from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.vocabulary import from_logits
from mlx_dgemma.text import structured
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.formats import format_of
from tests.command import in_process
from tests.text.gemma import gemma_tokenizer

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}, "kind": {"enum": ["north", "south"]}},
    "required": ["city", "people", "kind"],
}


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def form(schema, strict=True):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": strict}}


@pytest.fixture
def writes(monkeypatch, engine):
    """Makes the model go on with these texts, one an attempt; the attempts' clamped texts."""
    size, canvas = engine.model.config.vocab_size, engine.model.config.canvas_length
    original, tokenizer = structured.stitch, engine.tokenizer

    def script(*texts):
        clamped, now = [], []

        def generate(model, cache, settings, noise, most, *, steerings):
            given = [] if not steerings or steerings[0].clamped is None else steerings[0].given[0].tolist()
            count = 0 if not given else int(steerings[0].clamped.sum().item())
            clamped.append(tokenizer.decode(given[:count]))
            text = texts[min(len(clamped), len(texts)) - 1]
            ids = tokenizer.encode(text.removesuffix("…"), add_special_tokens=False)
            ids = [0] * count + ids + ([] if text.endswith("…") else [4])
            now[:] = [*ids, *[0] * canvas][:canvas]
            yield from original(model, cache, settings, noise, most, steerings=steerings)

        def finish(self, begun, query):
            logits = 50.0 * (mx.array(now)[None, :, None] == mx.arange(size)).astype(mx.float32)
            return from_logits(mx.broadcast_to(logits, (1, canvas, size)), query)

        monkeypatch.setattr(structured, "stitch", generate)
        monkeypatch.setattr(ModelDenoiser, "begin", lambda self, canvas, soft, slots: canvas)
        monkeypatch.setattr(ModelDenoiser, "finish", finish)
        monkeypatch.setattr(ModelDenoiser, "cancel", lambda self: None)
        return clamped

    return script


def test_a_model_that_knows_the_form_needs_one_attempt(engine, writes):
    attempts = writes('Oslo", "people": 700000, "kind": "north"}')
    result = engine.generate(Request("city", response_format=form(CITY)))
    assert json.loads(result.text) == {"city": "Oslo", "people": 700000, "kind": "north"}
    assert attempts == ['{"city": "'] and result.finish_reason == "stop" and result.fault == ""
    assert sum(result.entropy) < 1e-3 and len(result.log_p) == len(result.tokens)


def test_layout_is_the_models_to_choose_and_not_told(engine, writes):
    attempts = writes('Oslo",\n  "people" :700000,\n  "kind": "south"\n}\n')
    result = engine.generate(Request("city", response_format=form(CITY)))
    assert result.text == '{"city": "Oslo", "people": 700000, "kind": "south"}' and len(attempts) == 1


def test_a_key_of_its_own_is_replaced_by_the_schemas(engine, writes):
    attempts = writes('Oslo", "country": "Norway"}', ' 700000, "size": 3}', 'never"')
    result = engine.generate(Request("city", response_format=form(CITY)))
    answer = json.loads(result.text)
    assert (answer["city"], answer["people"]) == ("Oslo", 700000) and answer["kind"] in ("north", "south")
    assert attempts == ['{"city": "', '{"city": "Oslo", "people":']  # the enum is read, not denoised


def test_an_unfit_value_is_denoised_again_with_what_stands_before_it(engine, writes):
    schema = {
        "properties": {"a": {"const": 1}, "day": {"type": "string", "pattern": "[0-9]+"}},
        "required": ["a", "day"],
    }
    attempts = writes('Monday"}', 'Tuesday"}', '24"}')
    result = engine.generate(Request("day", response_format=form(schema)))
    assert json.loads(result.text) == {"a": 1, "day": "24"} and attempts == ['{"a": 1, "day": "'] * 3


def test_a_value_that_never_fits_is_an_error_or_told(engine, writes):
    schema = {"properties": {"day": {"type": "string", "pattern": "[0-9]+"}}, "required": ["day"]}
    attempts = writes('Monday"}')
    with pytest.raises(DGemmaError, match=r"does not follow its schema: day: 'Monday' does not match"):
        engine.generate(Request("day", response_format=form(schema)))
    assert 3 <= len(attempts) < 20
    result = engine.generate(Request("day", response_format=form(schema, strict=False)))
    assert result.text == '{"day": "Monday"}' and result.fault.startswith("day: ") and result.finish_reason == "stop"


def test_what_only_the_whole_can_tell_goes_back_to_the_value_at_fault(engine, writes):
    schema = {
        "properties": {"a": {"type": "string"}, "b": {"items": {"type": "string"}, "contains": {"const": "x"}}},
        "required": ["a", "b"],
    }
    attempts = writes('one", "b": ["y"]}', '"x"]}')
    result = engine.generate(Request("it", response_format=form(schema)))
    assert json.loads(result.text) == {"a": "one", "b": ["x"]} and len(attempts) == 2


def test_a_long_text_goes_on_canvas_after_canvas(engine, writes):
    canvas = engine.model.config.canvas_length
    words = "".join(random.Random(1).choices("abcdefghij ", k=3 * canvas)).strip()
    room = canvas - len('{"city": "')
    pieces = [words[:room], *(words[i : i + canvas] for i in range(room, len(words), canvas))]
    attempts = writes(*(piece + "…" for piece in pieces[:-1]), pieces[-1] + '", "people": 3, "kind": "north"}')
    result = engine.generate(Request("city", response_format=form(CITY)))
    assert json.loads(result.text)["city"] == words
    assert attempts[0] == '{"city": "' and len(result.canvases) >= 3 and result.finish_reason == "stop"
    assert "".join(engine.tokenizer.decode(c, skip_special_tokens=True) for c in result.canvases) == result.text


def test_the_budget_ends_it(engine, writes):
    writes("abcdefgh…", "ijklmnop…", "qrstuvwx…")
    few = GenerationConfig(max_new_tokens=24)
    with pytest.raises(DGemmaError, match="cut off; raise max_new_tokens"):
        engine.generate(Request("city", response_format=form({"type": "string", "minLength": 100}), settings=few))
    request = Request("city", response_format=form({"type": "string", "minLength": 100}, strict=False), settings=few)
    result = engine.generate(request)
    assert result.finish_reason == "length" and "cut off" in result.fault and len(result.tokens) == 24


def test_what_is_open_near_the_end_of_the_budget_is_closed(engine, writes):
    writes("abcdefgh…", "ijklmnop…", "qrstuvwx…", "abcd…")
    schema = {"properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]}
    result = engine.generate(Request("it", response_format=form(schema), settings=GenerationConfig(max_new_tokens=80)))
    jsonschema.validate(json.loads(result.text), schema)
    assert result.finish_reason == "stop" and len(result.tokens) <= 80


def test_a_loop_is_closed_and_a_stop_text_ends_it_with_a_word(engine, writes):
    writes("ab" * 200 + "…")
    result = engine.generate(Request("city", response_format=form({"type": "string"})))
    assert json.loads(result.text).startswith("ababab") and len(result.canvases) <= 4
    writes('Oslo", "people": 3, "kind": "north"}')
    request = Request("city", response_format=form(CITY, strict=False), stop=["people"])
    result = engine.generate(request)
    assert (result.text, result.fault) == ('{"city": "Oslo", "', "a stop text ended it")


def test_any_object(engine, writes):
    attempts = writes('"a": [1, {"b": null}], "c": "d"}')
    result = engine.generate(Request("it", response_format={"type": "json_object"}))
    assert json.loads(result.text) == {"a": [1, {"b": None}], "c": "d"} and attempts == ["{"]


def test_the_canvases_of_a_stream_are_the_result(engine):
    request = Request("roman 1994", response_format=form(CITY), seed=3)
    events = list(engine.stream(request))
    canvases = [event for event in events if isinstance(event, TextCanvas)]
    assert "".join(canvas.text for canvas in canvases) == engine.generate(request).text
    steps = [event for event in events if isinstance(event, DenoisingStep)]
    assert len(steps) == sum(canvas.steps for canvas in canvases) and {step.canvas_index for step in steps} == {0}
    assert canvases[-1].stats.steps == len(steps)


def test_the_model_is_told_the_form_in_the_systems_turn(engine):
    plain = {"type": "json_schema", "schema": {"type": "string"}}
    told = format_of(plain).told
    for prompt in ("hi", [{"role": "user", "content": "hi"}]):
        ids = engine.prepare(Request(prompt, response_format=plain)).ids
        assert told in engine.tokenizer.decode(ids) and told.endswith('{"type": "string"}')
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]
    assert f"Be short.\n\n{told}" in engine.tokenizer.decode(
        engine.prepare(Request(messages, response_format=plain)).ids
    )
    raw = Request([3, 4], response_format=plain)
    assert engine.prepare(raw).ids == [3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("share", range(4))
def test_random_schemas_in_the_embedded_alphabet(engine, share):
    """Each tenth of 200, or DGEMMA_SCHEMAS=1 for all; the checkpoint was never trained on JSON."""
    for seed in range(50 * share, 50 * (share + 1), int(os.environ.get("DGEMMA_SCHEMAS", "10"))):
        schema = Schemas(seed).draw()
        result = engine.generate(Request("roman 1994", seed=seed, response_format=form(schema)))
        jsonschema.Draft202012Validator(schema).validate(json.loads(result.text))
        assert result.finish_reason == "stop", schema


LOOP = {"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("json", "is a str; give an object"),
        ({"type": "xml"}, "the type is 'xml'"),
        ({"type": "json_schema"}, "there is no schema"),
        (form([]), "there is no schema"),
        (form({"type": "string"}, strict="yes"), "strict is 'yes'"),
        (form({"type": "text"}), "'text' is no type"),
        (form({"type": "object", "properties": []}), "properties: .* is not of type 'object'"),
        (form({"type": "object", "properties": {"a": 3}}), r"schema.a: the schema is 3"),
        (
            form({"type": "object", "required": ["a"], "additionalProperties": False}),
            "'a' is required, and no property",
        ),
        (form(LOOP), "refers to itself"),
        (form({"$ref": "#/nowhere"}), "names nothing"),
        (form({"$ref": "https://example.org/x"}), "is not inside the schema"),
        (form({"not": {"$ref": "https://example.org/x"}}), "is not inside the schema"),
        (form({"$dynamicRef": "#x"}), "dynamicRef is not supported"),
        (form({"type": "string", "pattern": "(a+)+$"}), "could take forever"),
        (form({"not": {"pattern": "(a+)+$"}}), "could take forever"),
        (form({"type": "integer", "minimum": 3, "maximum": 2}), "no number is from 3 to 2"),
        (form({"type": "integer", "minimum": "3"}), "minimum is '3'"),
        (form({"type": "string", "minLength": -1}), "minLength is -1"),
        (form({"enum": []}), "enum is no list"),
        (form({"enum": [float("nan")]}), "is no JSON"),
        (form({"enum": ["é"]}), "does not know: 'é'|what the model is told"),
    ],
)
def test_forms_that_are_none(engine, asked, told):
    with pytest.raises(DGemmaError, match=told) as error:
        engine.prepare(Request("it", response_format=asked))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "more", [{"samples": 2}, {"canvas": "{4}"}, {"tools": ({"name": "f"},), "tool_choice": "required"}]
)
def test_what_does_not_go_with_a_form(engine, more):
    with pytest.raises(DGemmaError, match="does not go with"):
        engine.prepare(Request("it", response_format={"type": "json_object"}, **more))


def test_a_checkpoint_without_a_tokenizer_has_no_forms(engine):
    with pytest.raises(DGemmaError, match="no tokenizer files"):
        Engine(engine.model, None).prepare(Request([3], response_format={"type": "json_object"}))


def test_control_tokens_in_keys_and_values_stay_text():
    tokenizer = gemma_tokenizer()
    mark = tokenizer.get_vocab()["<|tool_call>"]
    ids = structured.Spelling.ids(type("S", (), {"tokenizer": tokenizer})(), '{"<|tool_call>": "<turn|>"}')
    assert mark not in ids and tokenizer.decode(ids) == '{"<|tool_call>": "<turn|>"}'


def test_from_the_shell(tmp_path, capsys):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(CITY))
    code, out, _ = in_process(capsys, "roman 1994", "--json-schema", str(schema))
    assert code == 0
    jsonschema.validate(json.loads(out), CITY)
    schema.write_text('{"type": "string", "pattern": "^zz$"}')
    code, out, err = in_process(capsys, "roman 1994", "--json-schema", str(schema))
    assert code == 1 and ("does not know" in err or "does not follow its schema" in err) and "Traceback" not in err
    for text, told in (("{", "schema.json"), ("[]", "no schema")):
        schema.write_text(text)
        code, _, err = in_process(capsys, "roman 1994", "--json-schema", str(schema))
        assert code in (1, 2) and told in err and len(err.strip().splitlines()) <= 2
    code, _, err = in_process(capsys, "roman 1994", "--json-schema", str(schema), "--trace", str(tmp_path / "t.npz"))
    assert code == 2


@pytest.mark.parametrize("likes", [True, False])
def test_beside_tools_the_model_decides_at_the_first_token(engine, likes, monkeypatch):
    from mlx_dgemma.text import generation

    def likeliest(run, cache, beginnings):
        assert [len(ids) for ids in beginnings] == [1, 1]
        return int(likes)

    monkeypatch.setattr(generation, "likeliest", likeliest)
    vocabulary = {**engine.tokenizer.get_vocab(), "<|tool_call>": 7}
    monkeypatch.setattr(type(engine.tokenizer), "get_vocab", lambda self: vocabulary)
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    asked = Request("it", response_format={"type": "json_object"}, tools=(tool,), chat_template=True)
    monkeypatch.setattr("mlx_dgemma.text.run.prompt_ids", lambda *_, **__: [3, 5, 7])
    text = engine.generate(asked).text
    assert text.startswith("{") != likes
