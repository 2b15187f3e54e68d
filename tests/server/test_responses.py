"""/v1/responses with OpenAI's client, and what Codex sends."""

import json

import openai
import pytest

from mlx_dgemma.server.responses import Response
from tests.server.test_parts import PARTS, Nothing

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_whole_and_streamed(client):
    whole = client.responses.create(model="embedded", input="roman 1994")
    assert whole.output_text == "MCMXCIV" and whole.status == "completed" and whole.usage.output_tokens == 7
    with client.responses.stream(model="embedded", input=[{"role": "user", "content": "roman 1994"}]) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == "MCMXCIV"


def test_a_form(client):
    schema = {"type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"]}
    form = {"format": {"type": "json_schema", "name": "it", "schema": schema, "strict": True}}
    answer = client.responses.create(model="embedded", input="roman 1994", text=form)
    assert type(json.loads(answer.output_text)["even"]) is bool


def test_a_thought_a_text_and_calls_are_items(server):
    asked = Response.of(server.service, {"input": "a"})
    whole = asked.whole(PARTS, Nothing())
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert whole["output"][0]["content"][0]["text"] == "hmm" and whole["output"][2]["call_id"] == "call_1"
    stream = asked.streamed(Nothing())
    events = [*stream.before(), *(event for own in PARTS for event in stream.chunks(own)), *stream.after()]
    read = [json.loads(event.partition("data: ")[2]) for event in events]
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    added = [event["output_index"] for event in read if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in read if event["type"] == "response.output_item.done"]
    assert added == done == [0, 1, 2, 3] and read[-1]["type"] == "response.completed"


def test_what_codex_sends(server):
    body = {
        "instructions": "Be short.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "sandboxed"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": '{"command": "ls"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
        ],
        "tools": [
            {"type": "function", "name": "shell", "parameters": {"type": "object", "properties": {}}, "strict": False},
            {"type": "web_search"},
            {"type": "custom", "name": "apply_patch"},
            {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "mcp.f", "parameters": {}}]},
        ],
        "store": False, "parallel_tool_calls": True, "include": [], "prompt_cache_key": "x", "stream": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
    }  # fmt: skip
    asked = Response.of(server.service, body).asked
    assert [m["role"] for m in asked.messages] == ["system", "developer", "user", "assistant", "tool"]
    assert asked.messages[3]["reasoning"] == "hm" and asked.messages[3]["tool_calls"][0]["id"] == "c1"
    assert [tool["function"]["name"] for tool in asked.tools] == ["shell", "mcp.f"]


def test_a_text_that_was_cut_is_incomplete(client):
    answer = client.responses.create(model="embedded", input="roman 1994", max_output_tokens=3)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "input is missing"),
        ({"input": 3}, "input is 3"),
        ({"input": [3]}, "input[0] is no object"),
        ({"input": [{"type": "image"}]}, "items of type 'image'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "an image is given as"),
        ({"input": "a", "previous_response_id": "x"}, "nothing is kept"),
        ({"input": "a", "max_output_tokens": "x"}, "max_output_tokens"),
        ({"input": "a", "text": {"format": {"type": "x"}}}, "type is 'x'"),
    ],
)
def test_bad_input(server, body, told):
    response = server.post(PATH, body)
    assert response.status_code == 400 and told in response.json()["error"]["message"]
