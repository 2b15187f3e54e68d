"""Replies: answers, thoughts and calls from token ids; the same whole and in pieces, however they are cut."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma import DGemmaError
from mlx_dgemma.text.prompts import prompt_ids
from mlx_dgemma.text.reply import Reply, ReplyParser, parse_reply
from tests.text.gemma import NAMES, gemma_tokenizer

TOKENIZER = gemma_tokenizer()
Q = '<|"|>'
WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "celsius": {"type": "boolean"},
            "near": {"type": "array", "items": {"type": "string"}}, "open": {"type": ["integer", "string"]},
            "place": {"type": "object", "properties": {"x": {"type": "number"}}}, "note": {"type": ["string", "null"]},
        },
    },
}  # fmt: skip


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def parsed(text: str, **given) -> Reply:
    return parse_reply(TOKENIZER, ids(text), **given)


def arguments(inner: str, tools=()) -> dict:
    (call,) = parsed(f"<|tool_call>call:f{inner}<tool_call|>", tools=tools).tool_calls
    assert call.name == "f"
    json.dumps(call.arguments, allow_nan=False)
    return call.arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"{{a:{Q}x{Q}}}", {"a": "x"}),
        ("{}", {}),
        ("", {}),
        (
            f"{{a:{{b:[1,2.5,-3e2],c:{Q}v{Q}}},d:true,e:null}}",
            {"a": {"b": [1, 2.5, -300.0], "c": "v"}, "d": True, "e": None},
        ),
        (f"{{größe:{Q}😀{Q}}}", {"größe": "😀"}),
        (f'{{a:{Q}say "hi"\\n{Q}}}', {"a": 'say "hi"\\n'}),
        ("{a:{b:{c:{d:{e:1}}}}}", {"a": {"b": {"c": {"d": {"e": 1}}}}}),
        (f"{{a:{Q}}}{Q}}}", {"a": "}"}),
        (f"{{my-key:{Q}x{Q},$k:1}}", {"my-key": "x", "$k": 1}),
        (f"{{ a : {Q}x{Q} , b : 2 }}", {"a": "x", "b": 2}),
        ('{opts:{"mode":"fast","n":[1]}}', {"opts": {"mode": "fast", "n": [1]}}),
        ("{a:['x', 'it\\'s']}", {"a": ["x", "it's"]}),
        ("{city:Paris}", {"city": "Paris"}),
        ("{city:New York, n:1}", {"city": "New York", "n": 1}),
        ("{a:None,b:True,c:False}", {"a": None, "b": True, "c": False}),
        (f"{{city:{Q}Oslo}}", {"city": "Oslo"}),
        (f"{{a:{{b:[{Q}Oslo]}}}}", {"a": {"b": ["Oslo"]}}),
        (f"{{a:{Q}x,b:{Q}y{Q}}}", {"a": "x", "b": "y"}),
        (f"{{a:x {{1}}, 2{Q},b:{Q}y{Q}}}", {"a": "x {1}, 2", "b": "y"}),
        ("(a='x', b=2)", {"a": "x", "b": 2}),
        (f"({Q}a{Q}:1)", {"a": 1}),
        (f"{{{Q}a b{Q}:1}}", {"a b": 1}),
        (f"{{a:{Q}<tool_call|> <|tool_call>{Q}}}", {"a": "<tool_call|> <|tool_call>"}),
        ("{a:1,a:2}", {"a": 2}),
        ("{a:,b:1}", {"a": "", "b": 1}),
        ("{a:NaN,b:1e999,c:007,d:" + "9" * 400 + "}", {"a": "NaN", "b": "1e999", "c": 7, "d": "9" * 400}),
        ("{,,a:1,}", {"a": 1}),
        ("{junk,a:1}", {"a": 1}),
        ('{a:"x\\u00e9\\n"}', {"a": "xé\n"}),
    ],
)
def test_values_as_models_write_them(text, value):
    assert arguments(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{city:5}", {"city": "5"}),
        ("{city:true}", {"city": "true"}),
        ("{city:null}", {"city": None}),
        (f"{{days:{Q}5{Q}}}", {"days": 5}),
        ("{days:5.0}", {"days": 5}),
        ("{days:5.5}", {"days": 5.5}),
        ("{days:soon}", {"days": "soon"}),
        (f"{{celsius:{Q}False{Q}}}", {"celsius": False}),
        ("{celsius:TRUE}", {"celsius": True}),
        ("{near:[1,a]}", {"near": ["1", "a"]}),
        (f'{{near:{Q}["a"]{Q}}}', {"near": ["a"]}),
        (f"{{near:{Q}a{Q}}}", {"near": "a"}),
        (f"{{place:{{x:{Q}1.5{Q}}}}}", {"place": {"x": 1.5}}),
        ("{open:5}", {"open": 5}),
        (f"{{open:{Q}5{Q}}}", {"open": "5"}),
        ("{note:null}", {"note": None}),
        ("{unknown:5}", {"unknown": 5}),
    ],
)
def test_the_schema_decides_types_and_not_the_spelling(text, value):
    tools = [{**WEATHER, "name": "f"}]
    made = arguments(text, tools)
    assert made == value and [type(v) for v in made.values()] == [type(v) for v in value.values()]


@pytest.mark.parametrize("name", ["ns.f", "srv:tool", "get-it", "f_1"])
def test_names_of_every_kind(name):
    assert parsed(f"<|tool_call>call:{name}{{}}<tool_call|>").tool_calls[0].name == name
    assert parsed(f"<|tool_call>{name}{{}}<tool_call|>").tool_calls[0].name == name


def test_json_calls_of_other_models():
    (call,) = parsed('<|tool_call>{"name": "f", "arguments": {"a": 1}}<tool_call|>').tool_calls
    assert (call.name, call.arguments) == ("f", {"a": 1})


@pytest.mark.parametrize(
    ("text", "content", "thought", "calls"),
    [
        ("hi", "hi", "", []),
        ("<|channel>thought\nhm\n<channel|>hi", "hi", "hm", []),
        ("<|channel>thought\n<channel|>hi", "hi", "", []),
        ("<|channel>hm<channel|>hi", "hi", "hm", []),
        ("<|channel>thoughtful<channel|>hi", "hi", "thoughtful", []),
        ("<|channel>thought\na\n\nb\n<channel|><|channel>thought\nc<channel|>hi", "hi", "a\n\nb\nc", []),
        ("<|channel>a<|channel>b<channel|>hi", "hi", "a\nb", []),
        ("<channel|>hi<channel|>", "hi", "", []),
        ("<|channel>thought\nhm", "", "hm", []),
        ("<|channel>", "", "", []),
        ("<|turn>model\nhi", "hi", "", []),
        ("<|turn>mode", "mode", "", []),
        ("<|turn>user\nhi", "user\nhi", "", []),
        ("<tool_call|>", "", "", []),
        ("hi" + "<tool_call|>" * 16, "hi", "", []),
        ("a<|tool_call>call:f{}<tool_call|>b", "ab", "", ["f"]),
        ("<|tool_call>call:f{}<tool_call|><|tool_call>call:g{}<tool_call|>", "", "", ["f", "g"]),
        ("<|tool_call>call:f{}<|tool_call>call:g{}<tool_call|>", "", "", ["f", "g"]),
        ("<|channel>thought\nx<|tool_call>call:f{}<tool_call|>y<channel|>hi", "hi", "xy", ["f"]),
        (f"<|tool_call>call:f{{a:{Q}x}}<tool_call|>then", "then", "", ["f"]),
        (f"<|tool_call>call:f{{a:{Q}x}}<tool_call|><|tool_call>call:g{{}}<tool_call|>", "", "", ["f", "g"]),
        ("hi<turn|>more", "hi", "", []),
        ("<|tool_call>call:f{}<tool_call|><|tool_response>response:f{}", "", "", ["f"]),
        ("<|tool_call><tool_call|>hi", "hi", "", []),
    ],
)
def test_marks_with_and_without_a_partner(text, content, thought, calls):
    reply = parsed(text)
    assert (reply.content, reply.thought, [call.name for call in reply.tool_calls]) == (content, thought, calls)
    assert reply.finish_reason == ("tool_calls" if calls else "stop")


def test_a_thought_that_the_prompt_opened_goes_on():
    prompt = ids("<bos><|turn>model\n<|channel>thought\n")
    assert parsed("hm\n<channel|>hi", prompt=prompt) == Reply("hi", "hm", (), "stop")
    assert parsed("hm", prompt=ids("<|channel>thought\nso ")).thought == "hm"
    assert parsed("ght\nhm<channel|>", prompt=ids("<|channel>thou")).thought == "hm"
    assert parsed("hi", prompt=ids("<|turn>model\n<|channel>thought\n<channel|>")) == Reply("hi", "", (), "stop")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"{{a:{Q}x{Q},b:{Q}unfini", {"a": "x"}),
        (f"{{a:{Q}x{Q},b:12", {"a": "x"}),
        (f"{{a:{Q}x{Q},b:[1,2", {"a": "x"}),
        (f"{{a:{Q}x{Q},b", {"a": "x"}),
        (f"{{a:{Q}x{Q},b:", {"a": "x"}),
        (f"{{a:{Q}x{Q}", {"a": "x"}),
        ("{", {}),
        ("", {}),
    ],
)
def test_a_call_that_the_budget_cut_keeps_its_name_and_what_is_finished(text, value):
    reply = parsed(f"<|tool_call>call:f{text}")
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("f", value)]
    assert reply.finish_reason == "length"


def test_a_call_that_the_model_left_open_is_complete():
    reply = parsed(f"<|tool_call>call:f{{a:{Q}x{Q},b:12<turn|>")
    assert (reply.tool_calls[0].arguments, reply.finish_reason) == ({"a": "x", "b": 12}, "tool_calls")


def test_ids_are_the_same_for_the_same_and_differ_otherwise():
    text = "<|tool_call>call:f{}<tool_call|><|tool_call>call:f{}<tool_call|>"
    first, again, other = parsed(text), parsed(text), parsed(text, prompt=[5])
    identities = [call.id for reply in (first, other) for call in reply.tool_calls]
    assert first == again and len(set(identities)) == 4


def test_given_tokens_show_unless_they_open_what_holds_them():
    tokens = ids("<|channel>b") + ids("c")
    given = [None, None, ids("c")[0]]
    parser = ReplyParser(TOKENIZER, given=given)
    assert parser.add(tokens).content + parser.end(is_cut=False).content == "c"
    parser = ReplyParser(TOKENIZER, given=tokens)
    assert parser.add(tokens) == Reply("", "bc")
    call = ids("<|tool_call>call:f{}<tool_call|>")
    parser = ReplyParser(TOKENIZER, given=call[:8])
    assert parser.add(call).tool_calls[0].name == "f" and parser.end(is_cut=False).content == ""


def test_half_a_character_waits_in_answers_and_thoughts():
    data = TOKENIZER.encode("é", add_special_tokens=False)
    assert len(data) == 2
    parser = ReplyParser(TOKENIZER)
    assert parser.add([100, *data[:1]]) == Reply() and parser.add([*data[1:], *ids("x")]) == Reply("", "éx")
    assert parser.add([101, *data[:1]]) == Reply() and parser.add([*data[1:], *ids("x")]) == Reply("éx")


PIECES = st.sampled_from(
    [100, 101, 48, 49, 52, 105]
    + [tuple(ids(text)) for text in ("call:f{", "a:", "}", ",", "thought\n", "model\n", "é", "\n", "x 1")]
)


@given(st.lists(PIECES, max_size=30), st.lists(st.integers(0, 60), max_size=6), st.booleans(), st.booleans())
@settings(max_examples=500, deadline=None)
def test_pieces_joined_are_the_whole_reply(pieces, cuts, is_cut, is_thinking):
    tokens = [t for piece in pieces for t in ([piece] if isinstance(piece, int) else piece)]
    prompt = ids("<|channel>thought\n") if is_thinking else []
    whole = parse_reply(TOKENIZER, tokens, prompt=prompt, tools=[WEATHER], is_cut=is_cut)
    parser = ReplyParser(TOKENIZER, prompt=prompt, tools=[WEATHER])
    borders = sorted({0, len(tokens), *(c for c in cuts if c < len(tokens))})
    parts = [parser.add(tokens[a:b]) for a, b in itertools.pairwise(borders)]
    parts.append(parser.end(is_cut=is_cut or parser.is_unfinished))
    assert "".join(p.content for p in parts) == whole.content
    assert "".join(p.thought for p in parts) == whole.thought
    assert tuple(call for p in parts for call in p.tool_calls) == whole.tool_calls
    assert parts[-1].finish_reason == whole.finish_reason
    assert not any(name in whole.content + whole.thought for name in NAMES.values())


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"\A[a-z_][a-z0-9_-]{0,5}\Z"), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"\A[a-z_][a-z0-9_.-]{0,7}\Z"), VALUES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_the_template_writes_is_read_back(values):
    call = {"id": "a", "function": {"name": "f", "arguments": values}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    prompt = prompt_ids(TOKENIZER, messages)
    (read,) = parse_reply(TOKENIZER, prompt[prompt.index(48) :]).tool_calls
    assert read.arguments == values


@given(st.text(st.sampled_from("{}[]():=,'\"\\ab1 \ufdd0"), max_size=30), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_text_in_a_call_is_read_as_json_values(text, is_cut):
    inner = [t for part in text.split("\ufdd0") for t in [*ids(part), 52]][:-1]
    reply = parse_reply(TOKENIZER, [48, *ids("call:f{"), *inner], tools=[WEATHER], is_cut=is_cut)
    for call in reply.tool_calls:
        json.dumps(call.arguments, allow_nan=False)


def test_tools_that_are_none_are_refused():
    with pytest.raises(DGemmaError, match="tool 1 has no name"):
        parsed("hi", tools=[{"x": 1}])


def test_a_call_that_nests_without_end_is_read_in_bounded_depth():
    (call,) = parsed("<|tool_call>call:f{a:" + "[" * 5000 + "<tool_call|>").tool_calls
    json.dumps(call.arguments)
