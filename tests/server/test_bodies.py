"""Bodies that nobody expects, at every surface: its own error object and status, never a traceback or a dead server."""

import base64
import json
import os
import random
import re
import time

import pytest

from mlx_dgemma.text import images
from tests.fuzz import mutations
from tests.seeing import png

BODIES = int(os.environ.get("DGEMMA_BODIES", "25"))  # that are tried at each surface
WHOLE = (200, 400, 404, 413, 501, 503)
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}, "n": {"type": "integer", "minimum": 0}}}
FUNCTION = {"name": "look", "description": "looks", "parameters": SCHEMA, "strict": False}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
PARTS = [{"type": "text", "text": "roman"}, {"type": "text", "text": "1994"}]
SURFACES = {
    "/v1/chat/completions": {
        "model": "random",
        "messages": [
            {"role": "system", "content": "Be short."}, {"role": "user", "content": PARTS},
            {"role": "assistant", "content": "So", "reasoning_content": "hm", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "seen"}, {"role": "assistant", "content": "Go"},
        ],
        "max_completion_tokens": 20, "temperature": 0.5, "seed": 3, "n": 2, "stop": ["xyz"], "stream": True,
        "stream_options": {"include_usage": True}, "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "auto", "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 0,
        "continue_final_message": True, "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False}, "prediction": {"type": "content", "content": PARTS},
        "diffusion": {"drafts": "tokens", "t_min": 0.4, "t_max": 0.8, "max_denoising_steps": 2, "noise": 0.5},
    },
    "/v1/completions": {
        "model": "random", "prompt": ["roman"], "suffix": "XC", "max_tokens": 8, "stop": ["x"], "n": 1, "seed": 1,
        "temperature": 0, "stream": False, "stream_options": None, "diffusion": {"max_denoising_steps": 1},
    },
    "/v1/responses": {
        "model": "random", "instructions": "Be short.",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "x"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "seen"},
        ],
        "tools": [
            {"type": "function", **FUNCTION}, {"type": "namespace", "tools": [{"type": "function", "name": "f"}]},
        ],
        "tool_choice": {"type": "function", "name": "look"}, "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low", "summary": "auto"}, "max_output_tokens": 20, "stream": True,
        "metadata": {"a": "b"},
    },
    "/v1/messages": {
        "model": "random", "max_tokens": 20, "system": [{"type": "text", "text": "Be short."}],
        "messages": [
            {"role": "user", "content": PARTS},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "So"},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "x"}},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": PARTS}]},
        ],
        "tools": [{"name": "look", "description": "looks", "input_schema": SCHEMA}], "stop_sequences": ["xyz"],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "thinking": {"type": "disabled"},
        "stream": False, "temperature": 1, "metadata": {"user_id": "u"},
    },
    "/v1/systemone": {
        "model": "random", "state": "roman 1994",
        "questions": {
            "tone": {"type": "choice", "instructions": "What?", "criteria": {"formal": "stiff", "casual": None}},
            "grade": {"type": "score", "criteria": ["bad", "fair", "good"]},
            "spam": {"type": "noul", "criteria": {"true": "junk", "false": "mail"}},
        },
    },
    "/v1/tokenize": {"model": "random", "prompt": "roman", "add_special_tokens": False},
    "/v1/detokenize": {"model": "random", "tokens": [300, 301, 302]},
}  # fmt: skip
SURFACES["/v1/messages/count_tokens"] = SURFACES["/v1/messages"]
DATA = base64.b64encode(png(0)).decode()
BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
IMAGE = {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}", "detail": "low"}
LOOK = {"type": "input_text", "text": "look"}
SEEN = {  # with images in the user's turn and in a tool's result
    "/v1/chat/completions": {
        "model": "seeing",
        "messages": [
            {
                "role": "user",
                "content": [
                    *PARTS,
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}", "detail": "low"}},
                    {"type": "image_url", "image_url": f"data:image/png;base64,{DATA}"},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
                    *PARTS,
                ],
            },
        ],
        "max_completion_tokens": 20,
        "stream": True,
        "diffusion": {"image_tokens": 70, "max_denoising_steps": 1},
    },
    "/v1/responses": {
        "model": "seeing",
        "max_output_tokens": 20,
        "input": [
            {"type": "message", "role": "user", "content": [LOOK, IMAGE]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "x"}'},
            {"type": "function_call_output", "call_id": "c1", "output": [IMAGE, LOOK]},
        ],
    },
    "/v1/messages": {
        "model": "seeing",
        "max_tokens": 20,
        "messages": [
            {"role": "user", "content": [BLOCK, *PARTS]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "x"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [*PARTS, BLOCK]}]},
        ],
    },
}
SEEN["/v1/messages/count_tokens"] = SEEN["/v1/messages"]


def check(server, path, response):
    """Whatever came, it is of the surface's own form; the status."""
    text = response.text
    assert response.status_code in WHOLE and "Traceback" not in text, (response.status_code, text[:300])
    if response.status_code == 200:
        events = [e.partition("data: ")[2] for e in text.split("\n\n") if "data: " in e] if "data: " in text else [text]
        assert all(json.loads(event) for event in events if event != "[DONE]")
        assert '"server_error"' not in text and '"api_error"' not in text, text[-300:]
        return 200
    error = response.json()
    if path.startswith("/v1/messages"):
        assert error["type"] == "error" and set(error["error"]) == {"type", "message"}
    else:
        assert set(error["error"]) == {"message", "type", "param", "code"}
    told = error["error"]["message"]
    assert told and len(told.splitlines()) == 1 and len(told) < 2000, told[:300]
    return response.status_code


@pytest.mark.parametrize("path", SURFACES)
def test_a_body_that_is_right_is_answered(talking, says, path):
    says("MC<turn|>")
    assert check(talking, path, talking.post(path, SURFACES[path])) == 200


@pytest.mark.parametrize("path", SURFACES)
def test_a_body_that_is_changed_anywhere(talking, says, path):
    says("MC<turn|>")
    _change(talking, path, SURFACES[path])


@pytest.mark.parametrize("path", SEEN)
def test_a_body_with_images_that_is_changed_anywhere(seeing, says, path, monkeypatch):
    opened = []
    monkeypatch.setattr(images, "open_file", opened.append)
    says("MC<turn|>")
    assert check(seeing, path, seeing.post(path, SEEN[path])) == 200
    _change(seeing, path, SEEN[path])
    assert not opened


def _change(server, path, right):
    """Asks with many changes of what is right: each is answered or refused, and the server lives on."""
    statuses = []
    for seed in range(BODIES):
        body = mutations.edited(right, mutations.seeds(random.Random(f"{path} {seed}")))
        try:
            statuses.append(check(server, path, server.post(path, body)))
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"seed {seed}: {body[:3000]!r}") from error
    server.idle()
    assert server.http.get("/health").json() == {"status": "ok", "waiting": 0}
    assert 400 in statuses and statuses.count(200) < BODIES


@pytest.mark.parametrize("path", SURFACES)
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "give an object"),
        (b"\xff", "not UTF-8"),
        (b'{"a": NaN}', "no number"),
        (b'{"a": -Infinity}', "no number"),
        (b'{"a": ["\\ud83d"]}', "surrogate"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nests deeper"),
        (b"[" * 100_000, "nests deeper"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"{}", "missing"),
        (b'{"model": 3}', "model is 3"),
    ],
)
def test_what_is_no_body_anywhere(talking, path, body, told):
    response = talking.post(path, body)
    assert check(talking, path, response) == 400
    if not (body == b"{}" and path == "/v1/detokenize"):
        assert told in response.text


@pytest.mark.parametrize("path", SURFACES)
def test_a_model_that_is_not_served(talking, path):
    response = talking.post(path, SURFACES[path] | {"model": "gpt-4"})
    assert check(talking, path, response) == 404 and "'random' is" in response.text


LONG = "a " * 5000
LONGER = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}]},
    "/v1/completions": {"prompt": LONG},
    "/v1/responses": {"input": LONG},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": LONG}]},
    "/v1/systemone": {"state": LONG, "questions": {"spam": {"type": "noul"}}},
}


@pytest.mark.parametrize("path", LONGER)
def test_what_is_longer_than_the_context_names_both_counts(talking, path):
    response = talking.post(path, LONGER[path])
    assert check(talking, path, response) == 400
    prompt, *_, most = re.findall(r"\d+", response.json()["error"]["message"])
    assert int(prompt) > 5000 and int(most) == talking.service.context == 4096
    if not path.startswith("/v1/messages"):
        assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/v1/chat/completions", {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
        ("/v1/responses", {"type": "input_file", "file_id": "x"}),
        ("/v1/messages", {"type": "document", "source": {"type": "text", "data": "x"}}),
    ],
)
def test_what_is_no_text_is_refused_by_name(talking, path, part):
    message = {"role": "user", "content": [part]}
    response = talking.post(path, {"input" if path == "/v1/responses" else "messages": [message], "max_tokens": 5})
    assert check(talking, path, response) == 400
    assert f"'{part['type']}' is not supported, only text is" in response.text


NUMBERS = ["max_tokens", "max_completion_tokens", "seed", "temperature", "n", "top_logprobs", "top_p"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, -(10**400), 10**400, 1e308, 1e999, -1e999, 0.5, "5", True, [1], {"a": 1}])
def test_numbers_of_any_size(talking, says, name, value):
    says("MC<turn|>")
    text = json.dumps({"messages": [{"role": "user", "content": "hi"}], name: value}).replace("Infinity", "1e999")
    check(talking, "/v1/chat/completions", talking.post("/v1/chat/completions", text.encode()))


@pytest.mark.parametrize(
    "pattern", [r"^(a+)+$", r"(x+x+)+y", r"((((((a?){30}){30}){30})", "(", r"(?P<a>", "\\", "a{99999999}"]
)
def test_hostile_patterns_take_no_time(talking, server, says, pattern):
    says('<|tool_call>call:look{at:<|"|>aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!<|"|>}<tool_call|><|tool_response>')
    schema = {"type": "object", "properties": {"at": {"type": "string", "pattern": pattern}}, "required": ["at"]}
    began, ask = time.monotonic(), [{"role": "user", "content": "hi"}]
    body = {"messages": ask, "tools": [{"type": "function", "function": {"name": "look", "parameters": schema}}]}
    assert check(talking, "/v1/chat/completions", talking.post("/v1/chat/completions", body)) == 200
    tools = [{"name": "look", "input_schema": schema}]
    assert check(talking, "/v1/messages", talking.post("/v1/messages", {"messages": ask, "tools": tools})) == 200
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "upper a"}], "response_format": form, "max_tokens": 128}
    check(server, "/v1/chat/completions", server.post("/v1/chat/completions", body))
    assert time.monotonic() - began < 10
