"""LangChain's and LiteLLM's clients against the running server, where they are installed; no extra brings them."""

import json

import pytest

from tests.server.test_talking import SAID, TOOL

ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture
def langchain(talking):
    found = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    return found.ChatOpenAI(model="random", base_url=f"{talking.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def litellm(talking):
    found = pytest.importorskip("litellm", reason="litellm is not installed")
    ask = {"model": "openai/random", "api_base": f"{talking.url}/v1", "api_key": "none"}
    return lambda **more: found.completion(**ask, **more)


def test_langchain_whole_and_streamed(langchain, says):
    says("It is five, and it rains.<turn|>")
    assert langchain.invoke("hi").content == "It is five, and it rains."
    assert "".join(chunk.content for chunk in langchain.stream("hi")) == "It is five, and it rains."
    assert langchain.invoke("hi").usage_metadata["output_tokens"] > 5


def test_langchain_tools(langchain, says):
    says(SAID)
    bound = langchain.bind_tools([TOOL])
    whole = bound.invoke("hi")
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
        ("look", {"at": "Oslo", "days": 3}),
        ("look", {}),
    ]
    streamed = None
    for chunk in bound.stream("hi"):
        streamed = chunk if streamed is None else streamed + chunk
    assert [call["args"] for call in streamed.tool_calls] == [call["args"] for call in whole.tool_calls]


def test_langchain_structured_output(server):
    found = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    client = found.ChatOpenAI(model="embedded", base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    schema = {"title": "it", "type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"],
              "additionalProperties": False}  # fmt: skip
    answer = client.with_structured_output(schema, method="json_schema").invoke("roman 1994")
    assert type(answer["even"]) is bool


def test_litellm_whole_and_streamed(litellm, says):
    says("<|channel>thought\nhm<channel|>It is five.<turn|>")
    message = litellm(messages=ASK).choices[0].message
    assert message.content == "It is five." and message.reasoning_content == "hm"
    streamed = list(litellm(messages=ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == "It is five."


def test_litellm_tools(litellm, says):
    says(SAID)
    choice = litellm(messages=ASK, tools=[TOOL]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"at": "Oslo", "days": 3}
