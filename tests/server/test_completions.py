"""/v1/completions, /v1/tokenize, /v1/detokenize."""

import json

import openai
import pytest


def test_a_text_goes_on(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    whole = client.completions.create(model="embedded", prompt="roman 1994", seed=1)
    assert whole.choices[0].text == "MCMXCIV" and whole.choices[0].finish_reason == "stop"
    stream = client.completions.create(model="embedded", prompt="roman 1994", seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "MCMXCIV"


def test_what_stands_before_a_suffix(server):
    body = {"prompt": "roman 1994", "suffix": "XCIV", "max_tokens": 3, "seed": 1}
    assert server.post("/v1/completions", body).json()["choices"][0]["text"] == "MCM"
    text = server.post("/v1/completions", body | {"stream": True, "stream_options": {"include_usage": True}}).text
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == "MCM"
    assert events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "prompt is missing"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "n": 0}, "n is 0"),
        ({"prompt": "a", "suffix": 3}, "suffix"),
        ({"prompt": ["a", "b"]}, "prompt has 2 entries"),
    ],
)
def test_bad_input(server, body, told):
    response = server.post("/v1/completions", body)
    assert response.status_code == 400 and told in response.json()["error"]["message"]


def test_tokens_and_back(server):
    found = server.post("/v1/tokenize", {"prompt": "roman 1994", "add_special_tokens": False}).json()
    assert found["count"] == len(found["tokens"]) == 10
    assert server.post("/v1/detokenize", {"tokens": found["tokens"]}).json()["prompt"] == "roman 1994"
    for body in ({"tokens": [10**9]}, {"tokens": "x"}, {}, {"tokens": [1.5]}):
        assert server.post("/v1/detokenize", body).status_code == 400
    assert server.post("/v1/tokenize", {}).status_code == 400
