"""What breaks clients of servers like this one, a test each: fields, surfaces, and what lives behind them."""

import json
import threading

import pytest

from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from tests.server.test_schemas import events
from tests.server.test_traps import (
    ALL,
    ASK,
    BODY,
    CHAT,
    COMPLETIONS,
    MESSAGES,
    PARAMETERS,
    RESPONSES,
    SAID,
    TEXT,
    TOOLS,
    chunks,
)  # fmt: skip


def test_trap_11_thoughts_come_out_under_one_name_and_go_in_under_both(talking, says):
    says(SAID)
    message = talking.post(CHAT, BODY).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "hm, well" and "reasoning" not in message
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "seen"} for call in message["tool_calls"]]
    says(TEXT)
    prompts = []
    for name in ("reasoning", "reasoning_content"):
        own = {"role": "assistant", "tool_calls": message["tool_calls"], name: "another thought"}
        body = {"messages": [*ASK, own, *results], "tools": TOOLS}
        prompts.append(talking.post(CHAT, body).json()["usage"]["prompt_tokens"])
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("thinks", [False, True])
def test_trap_12_a_thought_begins_where_the_model_or_the_prompt_opens_it(talking, says, thinks):
    says("It is five.<turn|>")
    body = BODY | {"chat_template_kwargs": {"enable_thinking": thinks}}
    message = talking.post(CHAT, body).json()["choices"][0]["message"]
    assert message["content"] == "It is five." and "reasoning_content" not in message
    says("It is five.<|channel>thought\nor six")  # is left open
    message = talking.post(CHAT, body | {"max_tokens": 40}).json()["choices"][0]["message"]
    assert message["content"] == "It is five." and message["reasoning_content"] == "or six"


def test_trap_13_either_name_of_the_length_and_a_default_that_cuts_nobody(talking, says):
    says(" ".join(map(str, range(300))) + "<turn|>")
    for name in ("max_tokens", "max_completion_tokens"):
        assert talking.post(CHAT, {"messages": ASK, name: 9}).json()["usage"]["completion_tokens"] == 9
    answer = talking.post(CHAT, {"messages": ASK}).json()
    assert answer["usage"]["completion_tokens"] > 512 and answer["choices"][0]["finish_reason"] == "stop"


def test_trap_14_a_json_object_may_be_asked_for(server):
    body = {"messages": [{"role": "user", "content": "upper a"}], "response_format": {"type": "json_object"}}
    choice = server.post(CHAT, body | {"max_tokens": 128, "seed": 1}).json()["choices"][0]
    assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)


def test_trap_15_several_texts_are_all_read(talking, says):
    says("ok<turn|>")
    parts = [{"type": "text", "text": "alpha"}, {"type": "text", "text": "omega"}]
    one, two = [{"role": "user", "content": "alpha\nomega"}], [{"role": "user", "content": parts}]

    def count(body):
        return talking.post(f"{MESSAGES}/count_tokens", body).json()["input_tokens"]

    assert count({"messages": one}) == count({"messages": two})
    assert count({"messages": ASK, "system": parts}) == count({"messages": ASK, "system": "alpha\nomega"})
    usages = [talking.post(CHAT, {"messages": own}).json()["usage"]["prompt_tokens"] for own in (one, two)]
    assert usages[0] == usages[1]
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {}}]}
    told = [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": own}]}
        for own in (parts, "alpha\nomega")
    ]
    assert len({count({"messages": [*ASK, use, own]}) for own in told}) == 1


@pytest.mark.parametrize("path", ALL)
def test_trap_16_unknown_fields_are_ignored_and_null_is_absent(talking, says, path):
    says("ok<turn|>")
    nulls = dict.fromkeys(
        ["stop", "tools", "tool_choice", "temperature", "seed", "stream_options", "n", "diffusion", "stop_sequences",
         "top_p", "system", "thinking", "reasoning", "text", "instructions", "suffix", "response_format", "stream"]
    )  # fmt: skip
    sent = {"user": "u", "store": False, "service_tier": "auto", "prompt_cache_key": "k", "temperature": 0, "tools": [],
            "metadata": {"user_id": "u"}, "never_heard_of": [1]}  # fmt: skip
    for more in (nulls, sent):
        assert talking.post(path, {**more, **ALL[path]}).status_code == 200


# trap 17, the published schemas: `test_schemas.py`


def test_trap_18_logprobs_are_of_the_contents_tokens_and_of_their_bytes(talking, says):
    says("<|channel>thought\nhm<channel|>It is 5 °C, é🙂.<turn|>")
    body = {"messages": ASK, "logprobs": True, "seed": 1}
    choice = talking.post(CHAT, body).json()["choices"][0]
    told = choice["logprobs"]["content"]
    assert (
        bytes(byte for own in told for byte in own["bytes"]).decode()
        == "It is 5 °C, é🙂."
        == choice["message"]["content"]
    )
    assert any("\ufffd" in own["token"] for own in told)  # half a character, which JSON cannot hold
    streamed = [
        own
        for chunk in chunks(talking, body)
        for choice in chunk["choices"]
        for own in (choice.get("logprobs") or {"content": []})["content"]
    ]
    assert streamed == told


def test_trap_19_errors_are_objects_and_paths_are_told_before_anything(talking, monkeypatch):
    monkeypatch.setattr(talking.service.worker, "submit", lambda jobs: pytest.fail("asked"))
    for path, body, status in ((CHAT, {}, 400), ("/v1/embeddings", {}, 404), ("/api/tags", {}, 404), (CHAT, b"{", 400)):
        response = talking.post(path, body)
        assert response.status_code == status and set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert talking.http.get("/api/version").status_code == 404


def test_trap_20_models_tell_their_context(talking):
    listed = talking.http.get("/v1/models").json()
    assert [row["id"] for row in listed["data"]] == ["random", "random:think"]
    assert all(row["context_length"] == row["max_model_len"] == 4096 for row in listed["data"])
    assert listed["models"] == listed["data"]  # what Codex reads


def test_trap_21_codex_brings_tools_that_are_not_functions(talking, says):
    says(SAID)
    tools = [
        {"type": "function", "name": "shell", "parameters": {"type": "object", "properties": {}}, "strict": False},
        {"type": "web_search"}, {"type": "local_shell"},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "look", "parameters": PARAMETERS}]},
    ]  # fmt: skip
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "sandboxed"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}]},
        {"type": "custom_tool_call", "call_id": "c0", "name": "apply_patch", "input": "*** Begin Patch"},
        {"type": "custom_tool_call_output", "call_id": "c0", "output": "done"},
    ]
    body = {"instructions": "Be short.", "input": items, "tools": tools, "tool_choice": "auto", "store": False,
            "include": ["reasoning.encrypted_content"], "stream": True, "parallel_tool_calls": True}  # fmt: skip
    found = events(talking.post(RESPONSES, body))
    assert [found[0]["type"], found[-1]["type"]] == ["response.created", "response.completed"]
    assert found[-1]["response"]["output"][2]["name"] == "look"


def test_trap_22_claude_code_gets_its_events_in_order_and_its_prompt_is_remembered(talking, says):
    says(SAID)
    system = "You are a program that helps with programs. " * 10
    usages = []
    for number in (1, 2):
        header = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={number}"}
        body = {
            "messages": ASK,
            "max_tokens": 300,
            "stream": True,
            "system": [header, {"type": "text", "text": system}],
        }
        found = events(talking.post(MESSAGES, body))
        usages.append(found[-2]["usage"])
    assert usages[1]["cache_read_input_tokens"] > 100 and usages[1]["input_tokens"] < usages[0]["input_tokens"] + 5
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    opened = None
    for event in found[1:-2]:
        if event["type"] == "content_block_start":
            assert opened is None
            opened = event["index"]
        assert event["index"] == opened
        opened = None if event["type"] == "content_block_stop" else opened
    assert opened is None and found[0]["message"]["type"] == "message"


def test_trap_23_requests_for_titles_do_not_evict_a_conversation(talking, says):
    says("It is five.<turn|>")
    history = [{"role": "system", "content": "Be exact. " * 20}, *ASK]
    answer = talking.post(CHAT, {"messages": history}).json()["choices"][0]["message"]
    for number in range(3):
        talking.post(CHAT, {"messages": [{"role": "user", "content": f"A title for this chat, or tag {number}"}]})
    history += [answer, {"role": "user", "content": "and now?"}]
    usage = talking.post(CHAT, {"messages": history}).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 100


def test_trap_24_completions_with_a_stop_text_and_with_a_suffix(server):
    body = {"prompt": "roman 1994", "seed": 1, "max_tokens": 20}
    for stream in (False, True):
        response = server.post(COMPLETIONS, body | {"stop": ["X", "\n"], "stream": stream})
        found = events(response) if stream else [response.json()]
        assert "".join(choice["text"] for own in found for choice in own["choices"]) == "MCM"
        assert found[-1]["choices"][0]["finish_reason"] == "stop"
    body |= {"suffix": "XCIV", "max_tokens": 3}
    assert server.post(COMPLETIONS, body).json()["choices"][0]["text"] == "MCM"


def test_trap_25_a_responses_body_at_the_wrong_path_is_told_so(talking):
    response = talking.post(CHAT, {"input": "hi", "model": "random", "tools": [{"type": "function", "name": "look"}]})
    assert response.status_code == 400 and "messages are missing" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ALL)
def test_trap_26_no_marks_of_thoughts_and_calls_in_the_text_and_no_temperature_needed(talking, says, path):
    says(f"<channel|>{SAID[:-17]}<tool_call|><|channel><|channel>thought\nwell<channel|>Bye.<turn|>")
    for stream in (False, True):
        text = talking.post(path, ALL[path] | {"stream": stream}).text
        assert "Let me see." in text and "Bye." in text
        assert not any(mark in text for mark in ("<|", "|>", "call:look", "thought\\n")), text


# trap 27, clients that go away: `test_chat.test_a_client_that_goes_away_ends_the_work`, `test_load.py`


def test_trap_28_one_thread_computes_whatever_is_asked(talking, says, monkeypatch):
    says(TEXT)
    seen = set()
    for name in ("_encode", "_denoise", "encode", "denoise"):
        if hasattr(DiffusionGemma, name):
            monkeypatch.setattr(DiffusionGemma, name, _noting(getattr(DiffusionGemma, name), seen))
    for path, body in ALL.items():
        assert talking.post(path, body | {"stream": path == CHAT}).status_code == 200
    question = {"state": "a", "questions": {"spam": {"type": "noul"}}}
    assert talking.post("/v1/systemone", question).status_code == 200
    assert talking.post(f"{MESSAGES}/count_tokens", ALL[MESSAGES]).status_code == 200
    assert seen == {"mlx"}


def _noting(method, seen):
    def noted(*arguments, **options):
        seen.add(threading.current_thread().name)
        return method(*arguments, **options)

    return noted


def test_trap_29_what_does_not_fit_is_refused_before_it_is_read_and_memory_has_a_budget(talking, says, monkeypatch):
    says("ok<turn|>")
    store = talking.service.engine.prefixes
    store.clear()
    for number in range(5):
        talking.post(CHAT, {"messages": [{"role": "user", "content": f"{number} {'word ' * 400}"}]})
        monkeypatch.setattr(store, "budget", store.budget or 5 * store.nbytes // 2)  # room for two like the first
        assert 0 < store.nbytes <= store.budget
    assert len(store.entries) == 2
    seen = set()
    monkeypatch.setattr(DiffusionGemma, "_encode", _noting(DiffusionGemma._encode, seen))
    response = talking.post(CHAT, {"messages": [{"role": "user", "content": "word " * 4000}]})
    assert response.status_code == 400 and seen == set()
