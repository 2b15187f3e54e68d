"""Questions that are more than a prompt: what is asked of an engine, and what counts as its answer."""

import json
from dataclasses import replace

import pytest

from mlx_dgemma import GenerationConfig, Request
from mlx_dgemma.sweep.questions import QUESTIONS, draw_questions
from mlx_dgemma.sweep.runner import ask, said
from mlx_dgemma.tasks import ROWS as LESSONS
from mlx_dgemma.tasks.embedded import ROWS
from mlx_dgemma.tasks.talks import TALK_ROWS, THINKING
from mlx_dgemma.text.events import GenerationResult, Stats
from mlx_dgemma.text.reply import ToolCall


class Scripted:
    """An engine that says what it is told to, and keeps what it was asked."""

    def __init__(self, text="", calls=()):
        self.result = GenerationResult(
            text, [1], [[1]], [2], "stop", Stats(1, 0.1, 1, 1, 2, 0.1, 0), thought="hm", tool_calls=tuple(calls)
        )
        self.asked = []

    def generate(self, request):
        self.asked.append(request)
        return self.result


def test_a_prompt_alone_is_asked_as_it_is():
    question = draw_questions("roman", 0, 3)[2]
    assert question.request == Request(question.prompt)


@pytest.mark.parametrize("row", TALK_ROWS)
def test_a_talk_is_asked_with_its_turns_tools_and_thinking(row):
    for question in draw_questions(row, 0, 4):
        request, talk = question.request, question.talk
        assert request.prompt == list(talk.messages) and request.prompt is not talk.messages
        assert request.thinking == (row == THINKING) and bool(request.tools) == ("tool" in row)
        engine = Scripted(*((said(""), [call_of(talk)]) if talk.call else [talk.answer.rpartition("<channel|>")[2]]))
        settings = GenerationConfig(max_new_tokens=7)
        outcome = ask(engine, question, settings, 40)
        assert engine.asked == [replace(request, settings=settings, seed=40 + question.index)]
        assert outcome.correct and outcome.prompt == question.prompt == talk.prompt
        assert not ask(Scripted("x"), question, settings, 0).correct


def call_of(talk):
    return ToolCall("id", talk.call["name"], talk.call["arguments"])


def test_a_call_with_words_before_it_or_another_argument_is_wrong():
    question = draw_questions("calling a tool", 0, 1)[0]
    call = call_of(question.talk)
    other = replace(call, arguments={key: value + "x" for key, value in call.arguments.items()})
    for text, calls in (("well", [call]), ("", [other]), ("", [call, call]), ("", [])):
        assert not question.check(said(text, calls))
    assert question.check(said("", [call])) and json.loads(said("", [call]))["name"] == call.name


def test_rows_of_talks_stand_beside_those_of_tasks():
    assert {*ROWS, *LESSONS, *TALK_ROWS} == {*QUESTIONS} and len(set(QUESTIONS)) == len(QUESTIONS)
    assert QUESTIONS[: len(ROWS)] == ROWS


def test_a_task_is_drawn_as_it_was_learned_or_as_the_whole_lesson():
    learned, lesson = (draw_questions("spell", 0, 200, lessons=lessons) for lessons in (False, True))
    assert [min(len(q.prompt) for q in own) for own in (learned, lesson)] == [9, 9]
    three_digits = [sum(len(q.prompt) == 9 for q in own) for own in (learned, lesson)]
    assert three_digits[0] < 40 < three_digits[1]
    assert draw_questions("latin", 0, 1)[0].prompt == draw_questions("latin", 0, 1, lessons=True)[0].prompt
