"""What breaks clients of servers like this one, a test each: the shape of streams. Others: `test_traps_fields.py`."""

import json

import pytest

from mlx_dgemma.server import sse
from tests.server.test_chat import SLOWLY
from tests.server.test_schemas import events

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
ASK = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}]
BODY = {"messages": ASK, "tools": TOOLS, "seed": 1}
CALL = '<|tool_call>call:look{at:<|"|>Oslo<|"|>}<tool_call|>'
SAID = f"<|channel>thought\nhm, well<channel|>Let me see.{CALL}{CALL}<|tool_response>"
TEXT = "<|channel>thought\nhm<channel|>It is five, and it rains.<turn|>"
LONG = "One of a hundred words that stand here in a row, " * 6 + "and the end.<turn|>"
ALL = {
    CHAT: {"messages": ASK}, COMPLETIONS: {"prompt": "hi"}, RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": ASK, "max_tokens": 300},
}  # fmt: skip


def chunks(server, body):
    """The chunks of a chat's stream; each has a choice, or is the last one."""
    response = server.post(CHAT, body | {"stream": True})
    assert response.status_code == 200 and response.text.endswith("data: [DONE]\n\n")
    return events(response)


def deltas(found):
    """The deltas of chunks with a choice, of which there is one."""
    return [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]


def joined(found, name):
    return "".join(delta.get(name) or "" for delta in deltas(found))


@pytest.mark.parametrize("words", [SAID, TEXT, "<turn|>", LONG])
def test_trap_01_the_first_chunk_has_a_role_and_an_empty_content(talking, says, words):
    says(words)
    found = chunks(talking, BODY | {"n": 2})
    for index in (0, 1):
        own = deltas([chunk for chunk in found if chunk["choices"][0]["index"] == index])
        assert own[0] == {"role": "assistant", "content": ""} and all(len(delta) <= 1 for delta in own[1:])
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in found}) == 1


@pytest.mark.parametrize(("words", "reason"), [(SAID, "tool_calls"), (TEXT, "stop"), ("a " * 200, "length")])
def test_trap_02_one_chunk_ends_it_and_none_before(talking, says, words, reason):
    says(words)
    found = chunks(talking, BODY | {"max_tokens": 150})
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in found]
    assert reasons == [None] * (len(found) - 1) + [reason] and deltas(found)[-1] == {}
    assert "null" not in json.dumps(deltas(found))


def test_trap_03_usage_comes_behind_the_end_and_only_when_asked_for(talking, says):
    says(TEXT)
    assert not any("usage" in chunk or not chunk["choices"] for chunk in chunks(talking, BODY))
    *rest, last = chunks(talking, BODY | {"stream_options": {"include_usage": True}})
    assert last["choices"] == [] and last["object"] == "chat.completion.chunk" and "finish_reason" not in last
    assert all(len(chunk["choices"]) == 1 for chunk in rest)
    assert rest[-1]["choices"][0]["finish_reason"] == "stop"
    numbers = [last["usage"], *(own for own in last["usage"].values() if isinstance(own, dict))]
    assert all(type(value) in (int, dict) for own in numbers for value in own.values())


def test_trap_04_a_call_that_was_cut_is_not_to_be_made(talking, says):
    says(SAID)
    assert talking.post(CHAT, BODY).json()["choices"][0]["finish_reason"] == "tool_calls"
    says('<|tool_call>call:look{at:<|"|>' + "a long file " * 30)
    (choice,) = talking.post(CHAT, BODY | {"max_tokens": 50}).json()["choices"]
    assert choice["finish_reason"] == "length"
    *_, last = chunks(talking, BODY | {"max_tokens": 50})
    assert last["choices"][0]["finish_reason"] == "length"
    body = {"messages": ASK, "tools": [{"name": "look", "input_schema": PARAMETERS}], "max_tokens": 50}
    assert talking.post(MESSAGES, body).json()["stop_reason"] == "max_tokens"
    body = {"input": "hi", "tools": [{"type": "function", "name": "look"}], "max_output_tokens": 50}
    assert talking.post(RESPONSES, body).json()["status"] == "incomplete"


def test_trap_05_what_the_delta_of_a_call_has(talking, says):
    says(SAID)
    calls = [delta["tool_calls"] for delta in deltas(chunks(talking, BODY)) if "tool_calls" in delta]
    assert [[call["index"] for call in own] for own in calls] == [[0], [1]]
    for (call,) in calls:
        assert call["type"] == "function" and isinstance(call["id"], str) and call["function"]["name"] == "look"
        pairs = json.loads(call["function"]["arguments"], object_pairs_hook=list)
        assert pairs == [["at", "Oslo"]] or pairs == [("at", "Oslo")]
    assert calls[0][0]["id"] != calls[1][0]["id"]


@pytest.mark.parametrize("drafts", [False, "text", "tokens"])
def test_trap_06_every_choice_has_a_delta(talking, says, drafts):
    says(SAID)
    for chunk in chunks(talking, BODY | {"diffusion": {"drafts": drafts}}):
        assert all(isinstance(choice["delta"], dict) for choice in chunk["choices"])


def test_trap_07_content_is_added_to_and_never_replaced(talking, says):
    says(LONG)
    found = chunks(talking, BODY | {"diffusion": {"drafts": "text"}})
    assert len([delta for delta in deltas(found) if delta.get("content")]) > 3
    assert joined(found, "content") == LONG.removesuffix("<turn|>")


@pytest.mark.parametrize(
    "words", [SAID, TEXT, LONG, f"\n\n{TEXT}", f"<channel|>{CALL}<turn|>", f"{TEXT[:-7]}é 🙂 {CALL}<turn|>"]
)
def test_trap_08_streamed_and_whole_answers_are_the_same_bytes(talking, says, words):
    says(words)
    message, found = talking.post(CHAT, BODY).json()["choices"][0]["message"], chunks(talking, BODY)
    assert joined(found, "content") == (message["content"] or "")
    assert joined(found, "reasoning_content") == message.get("reasoning_content", "")
    calls = [call for delta in deltas(found) for call in delta.get("tool_calls", [])]
    assert [call["function"] for call in calls] == [call["function"] for call in message.get("tool_calls", [])]


@pytest.mark.parametrize(
    ("path", "word"), [(CHAT, ": still here"), (RESPONSES, ": still here"), (MESSAGES, "event: ping")]
)
def test_trap_09_there_is_a_word_in_every_silence(server, monkeypatch, path, word):
    monkeypatch.setattr(sse, "SILENCE", 0.03)
    length = {"max_output_tokens": 64} if path == RESPONSES else {"max_tokens": 64}
    asked = {"input": "count 1 999"} if path == RESPONSES else {"messages": SLOWLY["messages"]}
    quiet = asked | length | {"stream": True, "diffusion": SLOWLY["diffusion"] | {"max_denoising_steps": 60}}
    assert f"{word}\n" in server.post(path, quiet).text


@pytest.mark.parametrize("path", ALL)
def test_trap_10_who_asks_for_a_stream_gets_one(talking, says, path):
    for words in (SAID, "<turn|>"):
        says(words)
        response = talking.post(path, ALL[path] | {"stream": True})
        assert response.headers["content-type"].startswith("text/event-stream") and "data: " in response.text
        assert talking.post(path, ALL[path]).headers["content-type"] == "application/json"
