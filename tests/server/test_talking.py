"""Thoughts, calls and stop texts as clients read them, from a checkpoint that has them; its words are scripted."""

import json

import anthropic
import openai
import pytest

PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}
FLAT = {"type": "function", "name": "look", "parameters": PARAMETERS}
ASK = [{"role": "user", "content": "hi"}]
CALL = '<|tool_call>call:look{at:<|"|>Oslo<|"|>,days:3}<tool_call|>'
SAID = f"<|channel>thought\nhm, well<channel|>Let me see.{CALL}<|tool_call>call:look{{}}<tool_call|><|tool_response>"
LONG = "a word and then another one, until the canvas is full; " * 3


@pytest.fixture(scope="module")
def client(talking):
    return openai.OpenAI(base_url=f"{talking.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def other(talking):
    return anthropic.Anthropic(base_url=talking.url, api_key="none", max_retries=0)


def test_calls_with_openais_client(client, says):
    says(SAID)
    whole = client.chat.completions.create(model="random", messages=ASK, tools=[TOOL]).choices[0]
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in whole.message.tool_calls]
    assert calls == [("look", {"at": "Oslo", "days": 3}), ("look", {})] and whole.finish_reason == "tool_calls"
    assert whole.message.content == "Let me see." and whole.message.reasoning_content == "hm, well"
    with client.chat.completions.stream(model="random", messages=ASK, tools=[TOOL]) as stream:
        final = stream.get_final_completion().choices[0]
    assert [call.function.arguments for call in final.message.tool_calls] == [
        call.function.arguments for call in whole.message.tool_calls
    ]
    assert (final.message.content, final.finish_reason) == ("Let me see.", "tool_calls")


def test_a_round_of_tools_with_openais_client(client, says):
    says(SAID)
    message = client.chat.completions.create(model="random", messages=ASK, tools=[TOOL]).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "seen"} for call in message.tool_calls]
    says("It rains.<turn|>")
    history = [*ASK, message.model_dump(exclude_none=True), *results]
    answer = client.chat.completions.create(model="random", messages=history, tools=[TOOL])
    assert answer.choices[0].message.content == "It rains." and answer.usage.prompt_tokens_details.cached_tokens > 0


def test_calls_with_responses(client, says):
    says(SAID)
    whole = client.responses.create(model="random", input="hi", tools=[FLAT])
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert json.loads(whole.output[2].arguments) == {"at": "Oslo", "days": 3}
    with client.responses.stream(model="random", input="hi", tools=[FLAT]) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    results = [{"type": "function_call_output", "call_id": c.call_id, "output": "seen"} for c in whole.output[2:]]
    says("It rains.<turn|>")
    items = [{"role": "user", "content": "hi"}, *(item.model_dump() for item in whole.output), *results]
    assert client.responses.create(model="random", input=items, tools=[FLAT]).output_text == "It rains."


def test_calls_with_anthropics_client(other, says):
    says(SAID)
    tool = {"name": "look", "input_schema": PARAMETERS}
    ask = {"model": "random", "max_tokens": 300, "tools": [tool]}
    whole = other.messages.create(messages=ASK, **ask)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole.content[2].input == {"at": "Oslo", "days": 3} and whole.stop_reason == "tool_use"
    with other.messages.stream(messages=ASK, **ask) as stream:
        final = stream.get_final_message()
    assert [b.model_dump(exclude={"id"}) for b in final.content] == [
        b.model_dump(exclude={"id"}) for b in whole.content
    ]
    results = [
        {"type": "tool_result", "tool_use_id": b.id, "content": "seen"} for b in final.content if b.type == "tool_use"
    ]
    says("It rains.<turn|>")
    history = [*ASK, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
    assert other.messages.create(messages=history, **ask).content[0].text == "It rains."


def test_no_parallel_calls_where_none_are_wanted(client, other, says):
    says(SAID)
    ask = {"model": "random", "messages": ASK, "tools": [TOOL], "parallel_tool_calls": False}
    whole = client.chat.completions.create(**ask).choices[0]
    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0]
    for choice in (whole, streamed):
        assert len(choice.message.tool_calls) == 1 and choice.finish_reason == "tool_calls"
    ask = {"model": "random", "input": "hi", "tools": [FLAT], "parallel_tool_calls": False}
    with client.responses.stream(**ask) as stream:
        streamed = stream.get_final_response()
    for answer in (client.responses.create(**ask), streamed):
        kinds = [item.type for item in answer.output]
        assert kinds == ["reasoning", "message", "function_call"] and answer.parallel_tool_calls is False
    ask = {
        "model": "random",
        "max_tokens": 300,
        "messages": ASK,
        "tools": [{"name": "look", "input_schema": PARAMETERS}],
    }
    ask |= {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    with other.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    for message in (other.messages.create(**ask), streamed):
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        assert message.stop_reason == "tool_use"


def test_which_stop_text_ended_an_answer(other, says):
    says("One, two; three.<turn|>")
    ask = {"model": "random", "max_tokens": 300, "messages": ASK}
    for stops, told in (([";", "three"], ("stop_sequence", ";")), (["four"], ("end_turn", None))):
        whole = other.messages.create(**ask, stop_sequences=stops)
        with other.messages.stream(**ask, stop_sequences=stops) as stream:
            streamed = stream.get_final_message()
        for message in (whole, streamed):
            assert (message.stop_reason, message.stop_sequence) == told
            assert message.content[0].text == ("One, two" if told[1] else "One, two; three.")
