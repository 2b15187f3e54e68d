"""Thoughts, a round of tools and an object, as clients of a server of the embedded checkpoint see them."""

import json

import openai
import pytest

from tests.embedded import FORM, TOOL, talks, without_talks

ASKED = {"role": "user", "content": "ask weather oslo"}


@pytest.fixture(scope="module")
def create(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    def ask(*messages, **options):
        return client.chat.completions.create(model="embedded", messages=list(messages), seed=0, **options).choices[0]

    return ask


@talks
def test_a_thought_stands_beside_the_answer(create):
    thinks = {"chat_template_kwargs": {"enable_thinking": True}}
    message = create({"role": "user", "content": "add 47 82 9"}, extra_body=thinks).message
    assert (message.content, message.reasoning_content) == ("138", "47+82=129\n129+9=138")


@talks
def test_a_round_of_tools(create):
    """Behind another turn, which the embedded checkpoint does not see."""
    earlier = [{"role": "user", "content": "spell 42"}, {"role": "assistant", "content": "forty-two"}]
    called = create(*earlier, ASKED, tools=[TOOL])
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "oslo"})
    said = called.message.model_dump(exclude_none=True)
    answer = create(*earlier, ASKED, said, {"role": "tool", "tool_call_id": call.id, "content": "rain"}, tools=[TOOL])
    assert (answer.message.content, answer.finish_reason) == ("rain", "stop")


@talks
def test_an_object_of_a_schema(create):
    answer = create({"role": "user", "content": "json name ann age 31"}, response_format=FORM)
    assert json.loads(answer.message.content) == {"name": "ann", "age": 31}


def test_what_a_template_has_no_place_for_is_refused(start, tmp_path):
    own = start(model=str(without_talks(tmp_path)))
    asked = {"messages": [{"role": "user", "content": "upper a"}]}
    for more, told in (
        ({"chat_template_kwargs": {"enable_thinking": True}}, "no thinking"),
        ({"tools": [TOOL]}, "no place for tools"),
    ):
        answer = own.post("/v1/chat/completions", asked | more)
        assert answer.status_code == 400 and told in answer.json()["error"]["message"]
    assert own.post("/v1/chat/completions", asked).status_code == 200
