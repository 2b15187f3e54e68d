"""Thoughts, a round of tools and objects of a form, from the embedded checkpoint itself."""

import json

import pytest

from mlx_dgemma import Engine, Request
from tests.embedded import FORM, TOOL, talks

ASKED = {"role": "user", "content": "ask weather oslo"}


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


@talks
def test_a_sum_is_worked_out_in_the_thought(engine):
    result = engine.generate(Request("add 47 82 9", thinking=True))
    assert (result.thought, result.text) == ("47+82=129\n129+9=138", "138")
    assert result.stats.thought_tokens >= len(result.thought) and result.finish_reason == "stop"
    assert not engine.generate(Request("add 47 82 9")).thought


@talks
def test_a_tool_is_called_and_its_result_reported(engine):
    called = engine.generate(Request([ASKED], tools=[TOOL]))
    (call,) = called.tool_calls
    assert (call.name, call.arguments, called.text, called.finish_reason) == (
        "weather",
        {"city": "oslo"},
        "",
        "tool_calls",
    )
    said = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
    round_ = [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [said]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    report = engine.generate(Request(round_, tools=[TOOL]))
    assert (report.text, report.tool_calls, report.finish_reason) == ("rain", (), "stop")


@talks
def test_a_tool_that_must_be_called_is(engine):
    for choice in ("required", "weather"):
        result = engine.generate(Request([ASKED], tools=[TOOL], tool_choice=choice))
        assert [(call.name, call.arguments) for call in result.tool_calls] == [("weather", {"city": "oslo"})]


@talks
def test_an_object_of_a_given_form(engine):
    for form in (FORM, {"type": "json_object"}):
        result = engine.generate(Request("json name ann age 31", response_format=form))
        assert json.loads(result.text) == {"name": "ann", "age": 31} and not result.fault


@talks
def test_a_question_behind_other_turns(engine):
    before = [{"role": "user", "content": "spell 42"}, {"role": "assistant", "content": "forty-two"}]
    assert engine.generate(Request([*before, {"role": "user", "content": "roman 1994"}])).text == "MCMXCIV"
