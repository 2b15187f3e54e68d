"""/v1/messages with Anthropic's own client, and what Claude Code sends."""

import anthropic
import pytest

from mlx_dgemma.server.answers import End, Part
from mlx_dgemma.server.messages import BILLING, Messages, _turns
from mlx_dgemma.text.events import Stats
from mlx_dgemma.text.reply import ToolCall

PATH = "/v1/messages"
ASK = {"max_tokens": 200, "messages": [{"role": "user", "content": "roman 1994"}]}
TOOL = {
    "name": "look",
    "description": "looks",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_whole_and_streamed(client):
    whole = client.messages.create(model="embedded", **ASK)
    assert [block.text for block in whole.content] == ["MCMXCIV"] and whole.stop_reason == "end_turn"
    assert whole.usage.output_tokens == 7 and whole.usage.input_tokens + whole.usage.cache_read_input_tokens == 15
    with client.messages.stream(model="embedded", **ASK) as stream:
        assert "".join(stream.text_stream) == "MCMXCIV"
        assert stream.get_final_message().usage.output_tokens == 7


def test_tokens_are_counted_without_writing(client, server):
    counted = client.messages.count_tokens(model="embedded", messages=ASK["messages"])
    assert counted.input_tokens == 15
    bad = server.post(f"{PATH}/count_tokens", {"messages": [{"role": "user", "content": "é"}]})
    assert bad.status_code == 400 and bad.json()["error"]["type"] == "invalid_request_error"


def test_the_events_are_in_the_order_that_clients_insist_on(server):
    text = server.post(PATH, ASK | {"stream": True}).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip


class Nothing:
    prompt_tokens = (11,)


def said(text):
    return {"type": "text", "text": text}


def users(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def part(text="", thought="", calls=(), reason=None):
    stats = Stats(11, 0.1, 5, 1, 2, 0.1, 1)
    end = None if reason is None else End([2], stats, 0, "")
    return Part(0, text, thought, tuple(calls), [], [], (), reason, end)


def test_a_thought_a_text_and_calls_are_blocks_of_their_own(server):
    asked = Messages.of(server.service, ASK)
    calls = [ToolCall("call_1", "look", {"at": "å"}), ToolCall("call_2", "look", {})]
    parts = [part(thought="hm"), part(thought="m", text="So"), part(text=":"), part(calls=calls, reason="tool_calls")]
    whole = asked.whole(parts, Nothing())
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole["content"][0]["thinking"] == "hmm" and whole["content"][2]["input"] == {"at": "å"}
    assert whole["stop_reason"] == "tool_use"
    stream = asked.streamed(Nothing())
    events = [event for own in parts for event in stream.chunks(own)]
    kinds = [event.partition("\n")[0].removeprefix("event: content_block_") for event in events]
    block = ["start", "delta", "stop"]
    assert kinds == [
        "start", "delta", "delta", "stop", "start", "delta", "delta", "stop", *block, *block, "event: message_delta",
    ]  # fmt: skip
    assert '"partial_json":"{\\"at\\": \\"å\\"}"' in "".join(events)


def test_results_of_tools_are_messages_of_their_own():
    user = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [said("5"), said("C")]},
            said("and now?"),
        ],
    }
    assert _turns(user, "m") == [
        {"role": "tool", "tool_call_id": "c1", "content": "5\nC"},
        {"role": "user", "content": "and now?"},
    ]
    model = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "x"}},
        ],
    }
    (turn,) = _turns(model, "m")
    assert turn["reasoning"] == "hm" and turn["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": "x"}}


def test_what_changes_with_every_request_is_no_part_of_the_prompt(server):
    system = [{"type": "text", "text": f"{BILLING}: abc=1"}, {"type": "text", "text": "Be short.", "cache_control": {}}]
    asked = Messages.of(server.service, ASK | {"system": system}).asked
    assert asked.messages[0] == {"role": "system", "content": "Be short."}


def test_tools_of_anthropics_servers_are_left_out(server):
    tools = [TOOL, {"type": "web_search_20250305", "name": "web_search"}]
    asked = Messages.of(server.service, ASK | {"tools": tools, "tool_choice": {"type": "any"}}).asked
    assert [tool["function"]["name"] for tool in asked.tools] == ["look"] and asked.tool_choice == "required"
    named = Messages.of(server.service, ASK | {"tools": tools, "tool_choice": {"type": "tool", "name": "look"}}).asked
    assert named.tool_choice == "look"


def test_a_begun_answer_is_gone_on_with(client):
    messages = [*ASK["messages"], {"role": "assistant", "content": "MCM"}]
    whole = client.messages.create(model="embedded", max_tokens=200, messages=messages)
    assert whole.content[0].text == "XCIV"
    with client.messages.stream(model="embedded", max_tokens=200, messages=messages) as stream:
        assert "".join(stream.text_stream) == "XCIV"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "messages are missing"),
        (ASK | {"messages": [{"role": "tool", "content": "x"}]}, "no message of the user"),
        (ASK | users({"type": "image", "source": {}}), "messages[0].content[0]: an image is given as"),
        (ASK | {"messages": [{"role": "user", "content": 3}]}, "no text"),
        (ASK | users({"type": "tool_result", "tool_use_id": "x", "content": "y"}), "answers no call"),
        (ASK | {"system": 7}, "system is no text"),
        (ASK | {"tools": [3]}, "tools[0] is no object"),
        (ASK | {"max_tokens": 0}, "max_tokens is 0"),
        (ASK | {"tools": [TOOL], "tool_choice": {"type": "x"}}, "tool_choice.type"),
        (b"{", "no JSON"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_of_this_surfaces_form(server, body, told):
    response = server.post(PATH, body)
    error = response.json()
    assert (
        response.status_code == 400 and error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    )
    assert told in error["error"]["message"]


def test_errors_are_of_the_clients_own_types(client):
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        client.messages.create(model="claude-x", **ASK)
