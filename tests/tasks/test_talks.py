"""What the embedded checkpoint is trained to read and write: histories, thoughts, calls; and in whose format."""

import json
import re
from itertools import islice
from pathlib import Path

import jsonschema
import pytest

from mlx_dgemma import DGemmaError
from mlx_dgemma.checkpoint.chat_template import render as render_template
from mlx_dgemma.checkpoint.tokenizer import FastTokenizer
from mlx_dgemma.demo.batches import TOKENIZER, encode_answer, render
from mlx_dgemma.demo.vocabulary import CHARACTERS, END_OF_TURN, HEADS, RESPONSE, SPECIAL, write_tokenizer
from mlx_dgemma.tasks import draw_examples, examples, is_held_out, readings
from mlx_dgemma.tasks.talks import (
    OBJECT,
    READING,
    SCHEMA,
    TALK_ROWS,
    THINKING,
    UNKNOWN_TOOL,
    Talk,
    bare,
    draw_talk_row,
    draw_talks,
    thoughtful,
    with_form,
    with_history,
    with_system,
)
from mlx_dgemma.text.formats import format_of
from mlx_dgemma.text.prompts import prompt_ids
from mlx_dgemma.text.reply import parse_reply

PUBLISHED = (Path(__file__).parents[1] / "data" / "chat_template.jinja").read_text(encoding="utf-8")
CALL = {"id": "1", "function": {"name": "weather", "arguments": {"city": "oslo", "days": 3, "rain": True}}}
SAID = {"role": "assistant", "content": "rain"}
CALLED = {"role": "assistant", "tool_calls": [CALL]}
ASKED = {"role": "user", "content": "ask weather oslo"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return FastTokenizer.from_folder(folder)


def published(talk: Talk) -> str:
    context = {"messages": list(talk.messages), "tools": list(talk.tools) or None, "enable_thinking": talk.thinking}
    return render_template(PUBLISHED, {**context, "add_generation_prompt": True, "bos_token": "<bos>"})


def test_talks_stand_in_the_published_format():
    for talk in islice(draw_talks(5, held_out=False), 60):
        assert render(talk) == published(talk)


@pytest.mark.parametrize(
    "messages",
    [
        ({"role": "developer", "content": " be brief "}, {"role": "user", "content": " hi \n"}),
        ({"role": "user", "content": [{"type": "text", "text": "upper"}, {"type": "text", "text": "abc"}]},),
        (ASKED, {"role": "assistant", "reasoning": "look", "tool_calls": [CALL]}),
        (ASKED, CALLED, {"role": "tool", "tool_call_id": "1", "content": "rain"}),
        (ASKED, CALLED, {"role": "tool", "name": "weather", "content": "rain"}),
    ],
    ids=["developer", "parts", "call", "result", "named"],
)
def test_what_clients_send_stands_in_the_published_format(messages):
    assert render(Talk(messages, "")) == published(Talk(messages, ""))


def test_a_report_goes_on_with_the_turn_that_called():
    """Where the published template opens another turn, which its model did not write."""
    messages = (ASKED, CALLED, {"role": "tool", "tool_call_id": "1", "content": "rain"}, SAID, ASKED)
    call = '<|tool_call>call:weather{city:<|"|>oslo<|"|>,days:3,rain:true}<tool_call|>'
    result = '<|tool_response>response:weather{value:<|"|>rain<|"|>}<tool_response|>'
    told = f"<|turn>model\n{call}{result}rain<turn|>\n<|turn>user\nask weather oslo<turn|>\n<|turn>model\n"
    assert render(Talk(messages, "")) == "<bos><|turn>user\nask weather oslo<turn|>\n" + told


def test_what_a_prompt_looks_like():
    example = draw_examples("upper", 0, 1)[0]
    assert render(bare(example)) == f"<bos><|turn>user\n{example.prompt}<turn|>\n<|turn>model\n"
    assert render(with_system(example, "be brief")).startswith("<bos><|turn>system\nbe brief<turn|>\n<|turn>user\n")
    assert render(thoughtful(example)).startswith("<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\n")
    behind = render(with_history(example, draw_examples("sort", 0, 2)))
    assert behind.count("<|turn>model\n") == 3 and behind.endswith(render(bare(example)).removeprefix("<bos>"))


def test_only_work_that_helps_is_thought():
    add, upper = draw_examples("add", 0, 1)[0], draw_examples("upper", 0, 1)[0]
    assert thoughtful(add).answer.startswith("<|channel>thought\n") and thoughtful(add).thinking
    assert thoughtful(upper).answer == upper.answer and thoughtful(upper).thinking


def test_the_reply_parser_reads_what_is_taught(tokenizer):
    """Thoughts, calls and texts come apart as they were put together; calls are of declared tools."""
    thoughts = calls = reports = 0
    for talk in islice(draw_talks(1, held_out=False), 900):
        reply = parse_reply(tokenizer, encode_answer(talk))
        thoughts, calls = thoughts + bool(reply.thought), calls + len(reply.tool_calls)
        assert bool(reply.tool_calls) == (talk.call is not None) == (encode_answer(talk)[-1] == RESPONSE)
        if talk.call:
            call, asked = reply.tool_calls[0], talk.messages[-1]["content"].split(" ")
            declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in talk.tools}
            assert call.name == asked[1]
            assert call.arguments == {declared[call.name]["required"][0]: asked[2]}
        else:
            assert reply.content == talk.answer.rpartition("<channel|>")[2] and encode_answer(talk)[-1] == END_OF_TURN
        reports += talk.messages[-1]["role"] == "tool" and reply.content == talk.messages[-1]["content"]
        assert len(encode_answer(talk)) <= 128
    assert thoughts > 2 and calls > 50 and reports > 50


def test_a_tool_that_was_not_declared_is_none():
    unknown = [talk for talk in islice(draw_talks(2, held_out=False), 300) if talk.answer == UNKNOWN_TOOL]
    assert unknown
    for talk in unknown:
        assert talk.messages[0]["content"].split(" ")[1] not in {tool["function"]["name"] for tool in talk.tools}


def test_no_question_of_a_talk_is_held_out_in_training():
    for talk in islice(draw_talks(3, held_out=False), 300):
        assert not any(is_held_out(m["content"]) for m in talk.messages if m["role"] == "user" and "ask " not in str(m))


def test_every_character_and_marker_is_a_token(tokenizer):
    for text in (*SPECIAL, *HEADS, *CHARACTERS):
        assert len(TOKENIZER.encode(text, add_special_tokens=False).ids) == 1, text
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]
    assert set(tokenizer.control_tokens) == set(SPECIAL)
    text = "".join(chr(i) for i in range(32, 127))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_no_character_of_its_own_is_refused(tokenizer):
    for text, told in (("upper é", "'é' (U+00E9)"), ("a\tb", r"'\t' (U+0009)"), ("<turn|> 日", "'日' (U+65E5)")):
        with pytest.raises(DGemmaError, match=re.escape(f"does not know: {told}; leave them out")):
            prompt_ids(tokenizer, text)
    with pytest.raises(DGemmaError, match="'é'"):
        prompt_ids(tokenizer, [ASKED, CALLED, {"role": "tool", "tool_call_id": "1", "content": "é"}])
    assert tokenizer.unk_token_id not in prompt_ids(tokenizer, "<unk> <|turn> {}")


def test_a_spelled_out_marker_is_text(tokenizer):
    assert len(tokenizer.encode_plain("<|tool_call>")) == len("<|tool_call>")


def test_seeds_and_sides_of_talks_differ():
    first, again, other = (list(islice(draw_talks(s, held_out=False), 20)) for s in (1, 1, 2))
    assert first == again != other
    tasks = {e.prompt for e in islice(examples(2, held_out=True), 200)}
    asked = {talk.messages[-1].get("content") for talk in islice(draw_talks(1, held_out=True), 60)}
    assert tasks & asked


def test_rows_of_talks_have_what_they_say_and_know_what_is_right():
    for row in TALK_ROWS:
        talks = draw_talk_row(row, 4, 12)
        assert talks[:5] == draw_talk_row(row, 4, 5)
        for talk in talks:
            said = json.dumps(talk.call) if talk.call else talk.answer.rpartition("<channel|>")[2]
            assert talk.check(said) and not talk.check(said + " ") and not talk.check("")
            assert talk.thinking == (row == THINKING)
            assert [m["role"] for m in talk.messages] in {
                THINKING: [["user"]],
                READING: [["user"]],
                "behind other turns": [["user", "assistant"] * n + ["user"] for n in (1, 2)],
                "calling a tool": [["user"]],
                "a tool's result": [["user", "assistant", "tool"]],
            }[row]
            prompts = [m["content"] for m in talk.messages if m["role"] == "user"]
            is_kept = readings.is_held_out(talk.answer) if row == READING else all(map(is_held_out, prompts))
            assert talk.tools or is_kept or (row == READING and len(talk.answer) < 3)


def test_forms_are_told_as_requests_tell_them():
    example = next(examples(0, held_out=True, task="json"))
    system = with_form(example, schema=False).messages[0]
    assert system == {"role": "system", "content": format_of({"type": "json_object"}).told}
    told = with_form(example, schema=True).messages[0]["content"]
    schema = json.loads(told.removeprefix(SCHEMA))
    form = format_of({"type": "json_schema", "json_schema": {"name": "it", "schema": schema}})
    assert form.told == told
    jsonschema.validate(json.loads(example.answer), schema)
    talks = list(islice(draw_talks(0, held_out=False), 200))
    assert sum(talk.messages[0]["content"].startswith((OBJECT, SCHEMA)) for talk in talks) > 5


def test_a_talk_may_have_several_right_answers():
    talk = with_history(next(examples(0, held_out=True, task="shuffle")), [])
    assert talk.check(" ".join(sorted(talk.answer.split()))) and talk.check(talk.answer)
