"""Messages as clients send them: one form for the template, and every loss refused by name."""

import pytest

from mlx_dgemma import DGemmaError
from mlx_dgemma.text.messages import normalised


def call(arguments, name="f", **fields):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


def answered(content, **fields):
    """A result behind a call of f with the id a."""
    return [{"role": "assistant", "tool_calls": [call({}, id="a")]}, {"role": "tool", "content": content, **fields}]


def refused(*messages) -> str:
    with pytest.raises(DGemmaError) as error:
        normalised(messages)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_several_texts_are_joined_and_none_is_lost():
    parts = [{"type": "text", "text": "do this"}, {"type": "input_text", "text": "and that"}]
    assert normalised([{"role": "user", "content": parts}]) == [{"role": "user", "content": "do this\nand that"}]


def test_a_developer_is_a_system():
    assert normalised([{"role": "developer", "content": "x"}]) == [{"role": "system", "content": "x"}]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_comes_under_either_name(name):
    message = {"role": "assistant", "content": "x", name: "hm"}
    assert normalised([message]) == [{"role": "assistant", "content": "x", "reasoning": "hm"}]


@pytest.mark.parametrize("arguments", ['{"a": [1, null]}', {"a": [1, None]}])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_calls_have_objects_for_arguments_and_need_no_content(arguments, content):
    (made,) = normalised([{"role": "assistant", "tool_calls": [call(arguments, id="a")], **content}])
    assert made == {"role": "assistant", "content": "", "tool_calls": [call({"a": [1, None]}, id="a")]}


@pytest.mark.parametrize("arguments", ["", " ", None, "{}"])
def test_a_call_may_have_no_arguments(arguments):
    assert normalised([{"role": "assistant", "tool_calls": [call(arguments)]}])[0]["tool_calls"] == [
        call({}, id="call_1")
    ]


def test_text_beside_a_call_stands_before_it():
    message = {"role": "assistant", "content": "one moment", "reasoning": "hm", "tool_calls": [call({}, id="a")]}
    said, called = normalised([message])
    assert said == {"role": "assistant", "content": "one moment", "reasoning": "hm"}
    assert called == {"role": "assistant", "content": "", "tool_calls": [call({}, id="a")]}


@pytest.mark.parametrize(
    ("content", "becomes"),
    [
        ("5 C", "5 C"),
        ("", ""),
        ({"t": 5}, {"t": 5}),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([1, {"t": "ü"}], '[1, {"t": "ü"}]'),
        (5, "5"),
        (True, "true"),
    ],
)
def test_results_are_texts_or_objects(content, becomes):
    assert normalised(answered(content, tool_call_id="a"))[1] == {
        "role": "tool", "tool_call_id": "a", "name": "f", "content": becomes
    }  # fmt: skip


def test_results_without_an_id_go_by_name_or_in_order():
    calls = [call({}, "f", id="a"), call({}, "g", id="b")]
    by_name = [{"role": "tool", "name": "g", "content": "1"}, {"role": "tool", "name": "f", "content": "2"}]
    made = normalised([{"role": "assistant", "tool_calls": calls}, *by_name])
    assert [(m["tool_call_id"], m["content"]) for m in made[1:]] == [("b", "1"), ("a", "2")]
    in_order = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    made = normalised([{"role": "assistant", "tool_calls": calls}, *in_order])
    assert [(m["name"], m["content"]) for m in made[1:]] == [("f", "1"), ("g", "2")]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "moderator", "content": "x"}], "message 1 (moderator): unknown role; known are system, developer"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "message 2 (user) has no content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url' has no image_url; give a data: URL"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 (user): an image is missing"),
        ([{"role": "system", "content": [{"type": "image", "image": "a.png"}]}], "images of users and tools"),
        (
            [{"role": "assistant", "content": "x", "function_call": {}}],
            "function_call is not supported; use tool_calls",
        ),
        ([{"role": "assistant", "content": None}], "message 1 (assistant) has no content"),
        ([{"role": "assistant", "content": "", "reasoning": 3}], "reasoning is a int; give a text"),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls is a str; give a list"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "tool_calls are the assistant's; leave them out"),
        ([{"role": "assistant", "tool_calls": [3]}], "call 1 has no function with a name"),
        ([{"role": "assistant", "tool_calls": [call("{")]}], "the arguments of call 1 (f) are not JSON"),
        ([{"role": "assistant", "tool_calls": [call("[" * 99999)]}], "the arguments of call 1 (f) are not JSON"),
        ([{"role": "assistant", "tool_calls": [call("[1]")]}], "the arguments of call 1 (f) are no JSON object"),
        ([{"role": "assistant", "tool_calls": [call({}, id=3)]}], "the id of call 1 (f) is no text"),
        ([{"role": "assistant", "tool_calls": [call({}, id="a")] * 2}], "two calls have the id 'a'"),
        ([{"role": "tool", "content": "x"}], "message 1 (tool) answers no call; it must follow"),
        (answered("x", tool_call_id="b"), "message 2 (tool) answers no call: 'b' is none of 'a'"),
        (answered("x", name="g"), "'g' is none of 'a'"),
        ([*answered("x"), {"role": "tool", "content": "y"}], "message 3 (tool) answers no call"),
        (answered(None), "message 2 (tool) has no content"),
        (["x"], "prompt must be a text, a list of"),
        ([{"role": ["user"], "content": "x"}], "prompt must be a text, a list of"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(messages, told):
    assert told in refused(*messages)
