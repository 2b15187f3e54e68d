"""/v1/chat/completions: the shapes that clients rely on, and what is refused."""

import json
import math
import socket
import time

import pytest

from mlx_dgemma.server import answers, sse
from mlx_dgemma.server.bodies import DEPTH

PATH = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "roman 1994"}], "seed": 1}
LONG = {"messages": [{"role": "user", "content": "count 1 999"}], "seed": 1, "max_tokens": 4000, "temperature": 1}
SLOWLY = LONG | {"diffusion": {"confidence_threshold": 1e-9, "stability_threshold": 1000, "max_denoising_steps": 1000}}


def chunks(server, body):
    """The data of a stream, without its end, which has to be there."""
    response = server.post(PATH, body | {"stream": True})
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def asked(server, body):
    """A socket on which a request was sent."""
    client = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def test_a_whole_answer_has_what_the_published_schema_requires(server):
    answer = server.post(PATH, ASK).json()
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "MCMXCIV", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert answer["object"] == "chat.completion" and answer["model"] == "embedded"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 7 and usage["total_tokens"] == usage["prompt_tokens"] + 7
    assert answer["diffusion"]["seed"] == 1 and len(answer["diffusion"]["steps"]) == 1
    assert answer["diffusion"]["work"] == pytest.approx(answer["diffusion"]["steps"][0] / 7, rel=0.1)


def test_the_stream_of_a_client_that_knows_nothing_of_diffusion(server):
    first, *rest = chunks(server, ASK)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(len(chunk["choices"]) == 1 and len(chunk["choices"][0]["delta"]) <= 1 for chunk in rest)
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in [first, *rest]}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in [first, *rest]] == [None] * len(rest) + ["stop"]
    assert rest[-1]["choices"][0]["delta"] == {} and not any("usage" in chunk for chunk in rest)
    assert not any("diffusion" in chunk for chunk in rest[:-1])


@pytest.mark.parametrize("prompt", ["roman 1994", "spell 1842", "count 3 30", "sudoku 1..4..1.2....3.1"])
def test_streamed_and_whole_answers_are_the_same_bytes(server, prompt):
    body = {"messages": [{"role": "user", "content": prompt}], "seed": 5}
    whole = server.post(PATH, body).json()["choices"][0]["message"]["content"]
    streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(server, body))
    assert whole == streamed and whole


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(server):
    *rest, last = chunks(server, ASK | {"stream_options": {"include_usage": True}})
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 7
    assert "null" not in json.dumps(last["usage"]) and all(chunk["choices"] for chunk in rest)


def test_fast_computes_less_and_tells_what_settled(server):
    hard = {"model": "embedded", "messages": [{"role": "user", "content": "sudoku 1..............."}], "seed": 3}
    told = [
        [chunk["diffusion"] for chunk in chunks(server, hard | {"diffusion": {"drafts": "tokens", "fast": fast}})
         if "diffusion" in chunk]
        for fast in (False, True)
    ]  # fmt: skip
    plain, fast = told
    assert all("computed" not in draft for draft in plain)
    for draft in fast[:-1]:
        settled = sum(kind == 3 for _, _, kind in draft["tokens"])
        assert settled == 64 - draft.get("computed", 64)
    assert any("computed" in draft for draft in fast) and fast[-1]["work"] < plain[-1]["work"]


@pytest.mark.parametrize("detail", ["text", "tokens", True])
def test_drafts_are_valid_chunks_with_an_empty_delta(server, detail):
    found = chunks(server, ASK | {"diffusion": {"drafts": detail}})
    drafts = [chunk for chunk in found if "diffusion" in chunk and "step" in chunk["diffusion"]]
    assert drafts and all(c["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}] for c in drafts)
    assert drafts[-1]["diffusion"]["text"] == "MCMXCIV"
    if detail == "tokens":
        tokens = drafts[-1]["diffusion"]["tokens"]
        end = drafts[-1]["diffusion"]["end"]
        assert "".join(token for token, _, _ in tokens[:end]) == "MCMXCIV" and {kind for *_, kind in tokens} <= {
            0,
            1,
            2,
        }
    words = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found)
    assert words == "MCMXCIV"


def test_several_answers_have_seeds_one_after_another(server):
    found = server.post(PATH, ASK | {"n": 3, "messages": [{"role": "user", "content": "sort 91 14 55"}]}).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert [about["seed"] for about in found["diffusion"]] == [1, 2, 3]
    streamed = ["", "", ""]
    for chunk in chunks(server, ASK | {"n": 3, "messages": [{"role": "user", "content": "sort 91 14 55"}]}):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert streamed == [choice["message"]["content"] for choice in found["choices"]]


def test_logprobs_are_those_of_the_contents_tokens(server):
    (choice,) = server.post(PATH, ASK | {"logprobs": True}).json()["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == "MCMXCIV"
    assert all(token["logprob"] <= 0 and bytes(token["bytes"]).decode() == token["token"] for token in content)


def test_the_likeliest_tokens_are_told_beside_the_written_one(server):
    body = ASK | {"logprobs": True, "top_logprobs": 4}
    (choice,) = server.post(PATH, body).json()["choices"]
    content = choice["logprobs"]["content"]
    for token in content:
        top = token["top_logprobs"]
        assert len(top) == 4 and top[0]["token"] == token["token"]
        assert top[0]["logprob"] == pytest.approx(token["logprob"], abs=1e-4)
        assert [own["logprob"] for own in top] == sorted((own["logprob"] for own in top), reverse=True)
        assert sum(math.exp(own["logprob"]) for own in top) <= 1 + 1e-4
    told = [choice.get("logprobs") for chunk in chunks(server, body) for choice in chunk["choices"]]
    assert [own for one in told if one for own in one["content"]] == content


def test_a_form_and_a_template_and_a_draft(server):
    schema = {"type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"]}
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    content = server.post(PATH, ASK | {"response_format": form}).json()["choices"][0]["message"]["content"]
    assert set(json.loads(content)) == {"even"}
    content = server.post(PATH, ASK | {"diffusion": {"template": "M{5}V"}}).json()["choices"][0]["message"]["content"]
    assert content[0] == "M" and content[6:] == "V"
    usage = server.post(PATH, ASK | {"prediction": {"type": "content", "content": "MCMXCIV"}}).json()["usage"]
    details = usage["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] == 7


def test_an_answer_is_gone_on_with(server):
    messages = [*ASK["messages"], {"role": "assistant", "content": "MCM"}]
    body = ASK | {"messages": messages, "continue_final_message": True}
    assert server.post(PATH, body).json()["choices"][0]["message"]["content"] == "XCIV"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(server, body)) == "XCIV"


def test_what_real_clients_send_and_nobody_needs_is_ignored(server):
    more = {
        "user": "u", "store": False, "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True, "stop": None,
        "tools": [], "top_p": 0.9, "presence_penalty": 0, "frequency_penalty": 0, "prompt_cache_key": "k", "n": None,
        "temperature": 0, "tool_choice": "none", "stream_options": None, "reasoning_effort": "low", "logit_bias": {},
    }  # fmt: skip
    assert server.post(PATH, ASK | more).json()["choices"][0]["message"]["content"] == "MCMXCIV"


def test_content_in_parts_and_a_stop_text_and_a_length(server):
    parts = [{"type": "text", "text": "roman"}, {"type": "text", "text": "1994"}]
    answer = server.post(PATH, {"messages": [{"role": "user", "content": parts}], "seed": 1})
    assert answer.status_code in (200, 400)  # joined by a newline, which the task does not know
    stopped = server.post(PATH, ASK | {"stop": ["X"]}).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("MCM", "stop")
    cut = server.post(PATH, ASK | {"max_tokens": 3}).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("MCM", "length")
    assert server.post(PATH, ASK | {"max_tokens": 10**9}).status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "no JSON"),
        (b"[]", "give an object"),
        (b"\xff", "not UTF-8"),
        (b'{"messages": NaN}', "no number"),
        (("[" * (DEPTH + 2) + "]" * (DEPTH + 2)).join(('{"messages": ', "}")).encode(), "nests deeper"),
        (("[" * 100_000).encode(), "nests deeper"),
        ({}, "messages are missing"),
        ({"messages": []}, "messages are missing"),
        ({"messages": "hi"}, "messages is 'hi'; give a list"),
        ({"messages": [3]}, "messages[0] is no object"),
        ({"messages": [{"role": "x", "content": "a"}]}, "unknown role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": "upper é"}]}, "does not know: 'é' (U+00E9); leave them out"),
        (ASK | {"max_tokens": -1}, "max_tokens is -1"),
        (ASK | {"max_tokens": 1.5}, "whole number"),
        (ASK | {"n": 1000}, "n is 1000"),
        (ASK | {"stop": [1]}, "stop"),
        (ASK | {"stop": ["a"] * 99}, "stop has 99 entries"),
        (ASK | {"temperature": "hot"}, "temperature"),
        (ASK | {"stream": "yes"}, "true or false"),
        (ASK | {"tools": {}}, "tools"),
        (ASK | {"tools": [{"type": "function"}]}, "tool 1 has no name"),
        (ASK | {"tool_choice": 3}, "tool_choice"),
        (ASK | {"response_format": {"type": "xml"}}, "xml"),
        (ASK | {"logit_bias": {"1": 2}}, "logit_bias is not supported"),
        (ASK | {"top_logprobs": 5}, "top_logprobs"), (ASK | {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (ASK | {"functions": [{}]}, "use tools"),
        (ASK | {"diffusion": {"steps": 3}}, "diffusion.steps is unknown"),
        (ASK | {"diffusion": {"t_min": -1}}, "diffusion.t_min"),
        (ASK | {"chat_template_kwargs": {"tokenize": True}}, "tokenize is unknown"),
        (ASK | {"continue_final_message": True}, "continue_final_message"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_object_and_the_server_lives_on(server, body, told):
    for stream in (False, True):
        own = body if isinstance(body, bytes) or "stream" in body else body | {"stream": stream}
        response = server.post(PATH, own)
        error = response.json()["error"]
        assert response.status_code == 400 and told in error["message"] and "\n" not in error["message"]
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert server.http.get("/health").json()["status"] == "ok"


def test_too_long_a_prompt_names_both_counts(server):
    response = server.post(PATH, {"messages": [{"role": "user", "content": "upper " + "a" * 5000}]})
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "5" in error["message"] and "4096" in error["message"]


def test_other_models_and_paths_and_methods(server):
    response = server.post(PATH, ASK | {"model": "gpt-4"})
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert server.post(PATH, ASK | {"model": "embedded"}).status_code == 200
    assert server.http.get("/v1/nothing").status_code == 404 and server.http.get(PATH).status_code == 405
    row = server.http.get("/v1/models/embedded").json()
    assert row["context_length"] == row["max_model_len"] == 4096


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_the_work(server, stream):
    body = json.dumps(SLOWLY | {"stream": stream}).encode()
    client = asked(server, body)
    until = time.monotonic() + 10
    while not server.service.worker.waiting and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    assert server.service.worker.waiting
    client.close()
    server.idle(5)
    assert server.post(PATH, ASK).status_code == 200


def test_a_second_request_does_not_wait_for_the_end_of_the_first(server):
    body = json.dumps(SLOWLY | {"stream": True}).encode()
    client = asked(server, body)
    time.sleep(0.3)
    assert server.post(PATH, ASK).json()["choices"][0]["message"]["content"] == "MCMXCIV"
    assert server.service.worker.waiting  # the first one still runs
    client.close()
    server.idle(5)


def test_there_is_a_word_in_every_silence(server, monkeypatch):
    monkeypatch.setattr(sse, "SILENCE", 0.05)
    quiet = SLOWLY | {"max_tokens": 64, "diffusion": SLOWLY["diffusion"] | {"max_denoising_steps": 60}}
    text = server.post(PATH, quiet | {"stream": True}).text
    assert text.count(": still here\n\n") >= 1 and text.endswith("data: [DONE]\n\n")


def test_a_slow_reader_gets_the_newest_draft():
    class Nobody:
        def submit(self, jobs):
            self.jobs = jobs

    async def read():
        worker = Nobody()
        answer = answers.Answer(worker, [None], drafts=True)
        for step in range(50):
            answer._take(0, answers.Draft(0, step, 48, 0.5, 0.1, 3, [], [], [], []))
        found = []
        async for part in answer.parts(0.01):
            if part is None:
                return found
            found.append(part.draft.step)

    import asyncio

    assert asyncio.run(read()) == [49]
