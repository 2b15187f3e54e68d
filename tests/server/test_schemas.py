"""Whole answers and events against the published schemas, as llm-comply brings them."""

import json
from pathlib import Path

import llm_comply
import pytest
from llm_comply.schema import SSE_EVENT_TO_SCHEMA, SpecLoader

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:llm_comply")
ASK = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}
SAID = '<|channel>thought\nhm<channel|>Let me see.<|tool_call>call:look{at:<|"|>Oslo<|"|>}<tool_call|><|tool_response>'
CHAT = {"messages": ASK, "tools": [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]}
RESPONSE = {"input": "hi", "instructions": "Be short.", "tools": [{"type": "function", "name": "look"}]}
MESSAGE = {"messages": ASK, "max_tokens": 300, "tools": [{"name": "look", "input_schema": SCHEMA}]}
FORM = {"type": "json_schema", "name": "it", "schema": SCHEMA}


@pytest.fixture(scope="module")
def published():
    """The schemas of a surface; what is at fault in a value."""
    folder = Path(llm_comply.__file__).parent / "specs"
    return {name: SpecLoader(str(folder / f"{name}.json")) for name in ("openai_chat", "openresponses", "anthropic")}


def events(answer):
    """The objects of a stream, without its end."""
    found = [part.partition("data: ")[2] for part in answer.text.split("\n\n") if "data: " in part]
    return [json.loads(own) for own in found if own != "[DONE]"]


@pytest.mark.parametrize("words", [SAID, "Yes.<turn|>", "<|channel>thought\nhm<channel|>Yes.<turn|>", "a " * 300])
def test_whole_answers(talking, says, published, words):
    says(words)
    for path, body, spec, name in (
        ("/v1/chat/completions", CHAT | {"logprobs": True, "n": 2}, "openai_chat", "CreateChatCompletionResponse"),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 100}, "openai_chat", "CreateCompletionResponse"),
        ("/v1/responses", RESPONSE | {"max_output_tokens": 100}, "openresponses", "ResponseResource"),
        ("/v1/messages", MESSAGE | {"stop_sequences": ["see"]}, "anthropic", "Message"),
    ):
        assert published[spec].validate(talking.post(path, body).json(), name) == [], path


@pytest.mark.parametrize(
    "more",
    [
        {"text": {"format": {"type": "json_object"}}},
        {"text": {"format": FORM}, "temperature": 0.3, "top_p": 0.9},
        {"metadata": {"a": "b"}, "reasoning": {"effort": "low"}, "temperature": None},
        {"safety_identifier": "u", "prompt_cache_key": None, "top_p": None},
    ],
)  # fmt: skip
def test_what_a_response_repeats(server, published, more):
    answer = server.post("/v1/responses", {"input": "upper a", "max_output_tokens": 128} | more).json()
    if "schema" in answer["text"]["format"]:
        assert answer["text"]["format"].pop("schema") == SCHEMA
        answer["text"]["format"]["schema"] = None  # all that this edition of the specification lets it be
    assert published["openresponses"].validate(answer, "ResponseResource") == []


def test_models_and_counts(talking, published):
    assert published["openai_chat"].validate(talking.http.get("/v1/models").json(), "ListModelsResponse") == []
    counted = talking.post("/v1/messages/count_tokens", {"messages": ASK}).json()
    assert published["anthropic"].validate(counted, "CountMessageTokensResponse") == []


def test_events_of_responses(talking, says, published):
    says(SAID)
    found = events(talking.post("/v1/responses", RESPONSE | {"stream": True}))
    spec = published["openresponses"]
    known = [event for event in found if event["type"] in SSE_EVENT_TO_SCHEMA]  # texts of thoughts are newer
    assert [error for event in known for error in spec.validate_sse_event(event["type"], event)] == []
    assert {e["type"] for e in found if e not in known} == {
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
    }


def test_events_of_messages(talking, says, published):
    says(SAID)
    found = events(talking.post("/v1/messages", MESSAGE | {"stream": True}))
    assert [error for event in found for error in published["anthropic"].validate(event, "MessageStreamEvent")] == []


def test_chunks_of_chat(talking, says, published):
    says(SAID)
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    spec, found = published["openai_chat"], events(talking.post("/v1/chat/completions", body))
    errors = [error for chunk in found for error in spec.validate(chunk, "CreateChatCompletionStreamResponse")]
    assert all("finish_reason: None is not one of" in error for error in errors)  # null is what OpenAI sends there


def test_faults_are_found(talking, says, published):
    says(SAID)
    answer = talking.post("/v1/chat/completions", CHAT).json()
    del answer["choices"][0]["message"]["refusal"]
    assert published["openai_chat"].validate(answer, "CreateChatCompletionResponse") != []
