"""Thoughts and calls in chat completions, from parts that no embedded checkpoint writes."""

import json

import pytest

from mlx_dgemma.server.answers import End, Part
from mlx_dgemma.server.chat import Chat
from mlx_dgemma.text.events import Stats
from mlx_dgemma.text.reply import ToolCall

ASK = {"messages": [{"role": "user", "content": "a"}], "stream_options": {"include_usage": True}}
CALLS = (ToolCall("call_1", "look", {"at": "å"}), ToolCall("call_2", "listen", {}))


class Nothing:
    prompt_tokens = (11,)


def part(text="", thought="", calls=(), reason=None):
    stats = Stats(11, 0.1, 9, 1, 2, 0.1, 1, thought_tokens=4, cached_tokens=3)
    end = None if reason is None else End([2], stats, 0, "")
    return Part(0, text, thought, tuple(calls), [], [], (), reason, end)


PARTS = [
    part(thought="hm"),
    part(thought="m", text="So"),
    part(calls=CALLS[:1]),
    part(calls=CALLS[1:], reason="tool_calls"),
]


def test_a_whole_answer_with_a_thought_and_calls(server):
    answer = Chat.of(server.service, ASK).whole(PARTS, Nothing())
    (choice,) = answer["choices"]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"], choice["finish_reason"]) == ("So", "hmm", "tool_calls")
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["look", "listen"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"at": "å"}
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


def test_a_message_of_calls_alone_has_no_content(server):
    (choice,) = Chat.of(server.service, ASK).whole(PARTS[2:], Nothing())["choices"]
    assert choice["message"]["content"] is None


def test_the_stream_has_one_field_a_chunk_and_calls_with_their_index(server):
    stream = Chat.of(server.service, ASK).streamed(Nothing())
    events = [*stream.before(), *(event for own in PARTS for event in stream.chunks(own)), *stream.after()]
    assert events.pop() == "data: [DONE]\n\n"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert [list(delta) for delta in deltas] == [
        ["role", "content"], *[["reasoning_content"]] * 2, ["content"], *[["tool_calls"]] * 2, [],
    ]  # fmt: skip
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [call["index"] for call in calls] == [0, 1]
    assert all(isinstance(call[key], str) for call in calls for key in ("id", "type"))
    assert all(isinstance(call["function"][key], str) for call in calls for key in ("name", "arguments"))
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls" and chunks[-1]["choices"] == []


@pytest.mark.parametrize("reason", ["length", "repetition"])
def test_a_call_that_was_cut_is_no_call_to_be_made(server, reason):
    (choice,) = Chat.of(server.service, ASK).whole([part(calls=CALLS, reason=reason)], Nothing())["choices"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("more", "thinks"),
    [
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, False),  # a hint, which this checkpoint's template has no place for
        ({}, False),
    ],
)
def test_switches_of_thinking(server, more, thinks):
    assert Chat.of(server.service, ASK | more).asked.thinking == thinks


@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        ("required", "required"),
        ({"type": "function", "function": {"name": "f"}}, "f"),
        (None, "auto"),
        ("none", "none"),
    ],
)
def test_choices_of_tools(server, choice, asked):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert Chat.of(server.service, ASK | {"tools": [tool], "tool_choice": choice}).asked.tool_choice == asked
