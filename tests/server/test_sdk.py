"""OpenAI's own client against the running server."""

import json

import openai
import pytest

ASK = [{"role": "user", "content": "roman 1994"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_whole_and_streamed(client):
    whole = client.chat.completions.create(model="embedded", messages=ASK, seed=1)
    assert whole.choices[0].message.content == "MCMXCIV" and whole.usage.completion_tokens == 7
    stream = client.chat.completions.create(model="embedded", messages=ASK, seed=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "MCMXCIV"


def test_drafts_disturb_nobody_who_reads_deltas(client):
    more = {"diffusion": {"drafts": "tokens"}}
    stream = client.chat.completions.create(model="embedded", messages=ASK, seed=1, stream=True, extra_body=more)
    found = [(chunk.choices[0].delta.content or "", getattr(chunk, "diffusion", None)) for chunk in stream]
    assert "".join(text for text, _ in found) == "MCMXCIV" and any(about and "step" in about for _, about in found)
    with client.chat.completions.stream(model="embedded", messages=ASK, seed=1, extra_body=more) as helper:
        assert helper.get_final_completion().choices[0].message.content == "MCMXCIV"


def test_structured_output(client):
    schema = {
        "type": "object",
        "properties": {"even": {"type": "boolean"}},
        "required": ["even"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="embedded", messages=ASK, response_format=form)
    assert type(json.loads(answer.choices[0].message.content)["even"]) is bool


def test_errors_are_of_the_clients_own_types(client):
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="other", messages=ASK)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="embedded", messages=[{"role": "user", "content": "upper " + "a" * 5000}])
    assert error.value.code == "context_length_exceeded"


def test_models(client):
    assert next(iter(client.models.list())).id == "embedded"
