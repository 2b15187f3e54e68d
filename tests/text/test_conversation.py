"""Thoughts, calls, stop texts and loops, from a request to its result; the model's canvases are scripted."""

import json

import mlx.core as mx
import pytest

from benchmarks.models import config_dict, write_random
from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request, load
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.vocabulary import from_logits
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.reply import ToolCall, parse_reply
from mlx_dgemma.text.turns import Turn, Turns
from tests.text.gemma import gemma_tokenizer, june

CANVAS, VOCABULARY = 64, 512
PAD, END, OPENS, CLOSES = 0, 106, 100, 101
TOOLS = [
    {"name": "look", "description": "d", "parameters": {"properties": {"at": {"type": "string"}}}},
    {"name": "listen", "description": "d", "parameters": {"properties": {}}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random checkpoint with the tokens of the published one's conversations."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "sliding_window": 32}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 16_384}
    return write_random(tmp_path_factory.mktemp("talker"), config_dict(CANVAS, **text))


@pytest.fixture(scope="module", params=["july", "june"])
def talker(request, folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 106, 50], "max_new_tokens": 256}')
    return Engine(load(folder)[0], gemma_tokenizer(june() if request.param == "june" else None), "random")


@pytest.fixture
def writes(monkeypatch):
    """Makes a model write these canvases in order, around what is given; the prompts that it saw."""

    def script(*canvases):
        begun = []

        def begin(self, canvas, soft, slots=None):
            if self.cache.length not in begun:
                begun.append(self.cache.length)
            return canvas

        def finish(self, canvas, query):
            own = canvases[min(begun.index(self.cache.length), len(canvases) - 1)]
            ids = [*own, *[0] * (CANVAS - len(own))]
            logits = 50.0 * (mx.array(ids)[None, :, None] == mx.arange(VOCABULARY)).astype(mx.float32)
            return from_logits(mx.broadcast_to(logits, (len(canvas), CANVAS, VOCABULARY)), query)

        monkeypatch.setattr(ModelDenoiser, "begin", begin)
        monkeypatch.setattr(ModelDenoiser, "finish", finish)
        monkeypatch.setattr(ModelDenoiser, "cancel", lambda self: None)
        return begun

    return script


def ids(text: str) -> list[int]:
    return gemma_tokenizer().encode(text, add_special_tokens=False)


def asked(talker, **fields):
    """The result, and the same from the stream: they agree."""
    request = Request("hi", **fields)
    result = talker.generate(request)
    canvases = [event for event in talker.stream(request) if isinstance(event, TextCanvas)]
    assert "".join(c.text for c in canvases) == result.text
    assert [call for c in canvases for call in c.tool_calls] == list(result.tool_calls)
    assert [c.canvas_index for c in canvases] == list(range(len(canvases)))
    return result


def test_a_thought_and_an_answer_come_apart(talker, writes):
    writes([OPENS, *ids("thought\nwell\n"), CLOSES, *ids("Hello"), END])
    result = asked(talker, thinking=True)
    assert (result.text, result.thought, result.finish_reason) == ("Hello", "well", "stop")
    assert result.stats.thought_tokens == len(ids("thought\nwell\n")) + 2


def test_an_empty_thought_that_the_model_writes_itself_says_nothing(talker, writes):
    writes([OPENS, *ids("thought\n"), CLOSES, *ids("Hello"), END])
    assert (asked(talker).text, asked(talker).thought) == ("Hello", "")


def test_calls_come_with_their_types_and_say_so(talker, writes):
    call = ids('<|tool_call>call:look{at:<|"|>it<|"|>}<tool_call|>')
    writes([*ids("so"), *call, *call, 50])
    result = asked(talker, tools=TOOLS)
    assert [(c.name, c.arguments) for c in result.tool_calls] == [("look", {"at": "it"})] * 2
    assert (result.text, result.finish_reason) == ("so", "tool_calls")
    prompt = talker.prepare(Request("hi", tools=TOOLS)).ids
    assert parse_reply(talker.tokenizer, result.tokens, prompt=prompt, tools=TOOLS).tool_calls == result.tool_calls


def test_a_call_over_two_canvases_arrives_once_and_whole(talker, writes):
    call = ids('<|tool_call>call:look{at:<|"|>' + "ab " * 30 + '<|"|>}<tool_call|>')
    writes(call[:CANVAS], [*call[CANVAS:], 50])
    result = asked(talker, tools=TOOLS)
    assert [c.arguments for c in result.tool_calls] == [{"at": "ab " * 30}]


def test_a_call_that_the_length_cuts_keeps_what_is_finished(talker, writes):
    writes(ids('<|tool_call>call:look{at:<|"|>it<|"|>,n:' + "1" * 60)[:CANVAS])
    result = asked(talker, tools=TOOLS, settings=GenerationConfig(max_new_tokens=CANVAS))
    assert [(c.name, c.arguments) for c in result.tool_calls] == [("look", {"at": "it"})]
    assert result.finish_reason == "length"


def test_without_tools_in_sight_the_prompt_has_none(talker):
    plain, none = (talker.prepare(Request("hi", **f)).ids for f in ({}, {"tools": TOOLS, "tool_choice": "none"}))
    assert plain == none != talker.prepare(Request("hi", tools=TOOLS)).ids


@pytest.mark.parametrize("choice", ["look", "listen"])
def test_a_named_call_is_made_whatever_the_model_would_say(talker, writes, choice):
    writes([*ids("no"), *[7] * 30, *ids("}<tool_call|>"), 50])
    result = asked(talker, tools=TOOLS, tool_choice=choice)
    assert [c.name for c in result.tool_calls] == [choice] and result.finish_reason == "tool_calls"


def test_a_required_call_is_one_of_the_tools(talker):
    settings = GenerationConfig(max_new_tokens=CANVAS, max_denoising_steps=2)
    result = talker.generate(Request("hi", tools=TOOLS, tool_choice="required", settings=settings))
    assert result.tool_calls[0].name in ("look", "listen")


def test_a_required_call_stands_behind_the_thought(talker, writes):
    thought = [OPENS, *ids("thought\n" + "ab " * 30), CLOSES]
    begun = writes(thought[:CANVAS], [*thought[CANVAS:], *ids("no call"), END], [*[7] * 40, *ids("}<tool_call|>"), 50])
    request = Request("hi", thinking=True, tools=TOOLS, tool_choice="look")
    result = talker.generate(request)
    assert result.thought.split() == ["ab"] * 30 and [c.name for c in result.tool_calls] == ["look"]
    assert (result.text, result.finish_reason) == ("", "tool_calls")
    prompt = len(talker.prepare(request).ids)
    assert begun == [prompt, prompt + CANVAS, prompt + len(thought)]  # the prefix ends where the thought does
    assert result.tokens[: len(thought)] == thought


def test_a_model_that_does_not_think_calls_at_once(talker, writes):
    begun = writes([*ids("no thought"), END])
    result = talker.generate(Request("hi", thinking=True, tools=TOOLS, tool_choice="look"))
    assert [c.name for c in result.tool_calls] == ["look"] and len(begun) == 1 and result.thought == ""


@pytest.mark.parametrize(
    ("stop", "text", "kept"),
    [
        (["world"], "Hello ", "Hello world"),
        (["o"], "Hell", "Hello"),
        (["xyz"], "Hello world, and more", None),
        (["and", ", "], "Hello world", "Hello world, a"),
        (["é"], "Hello world, and more", None),
    ],
)
def test_a_stop_text_ends_the_answer(talker, writes, stop, text, kept):
    writes([OPENS, *ids("thought\nworld o"), CLOSES, *ids("Hello world, and more"), END])
    result = asked(talker, stop=stop)
    assert (result.text, result.finish_reason) == (text, "stop")
    assert result.stop_text == {"Hello ": "world", "Hell": "o", "Hello world": ", "}.get(text, "")
    if kept is not None:
        assert talker.tokenizer.decode(result.tokens).endswith(kept) and len(result.log_p) == len(result.tokens)


def test_nothing_behind_a_stop_text_is_told(talker, writes):
    """A call or a thought that the same canvas holds was never made; what stands before it was."""
    call = ids('<|tool_call>call:look{at:<|"|>it<|"|>}<tool_call|>')
    writes([OPENS, *ids("thought\nwell"), CLOSES, *ids("a STOP"), *call, 50])
    result = asked(talker, stop=["STOP"], tools=TOOLS)
    assert (result.text, result.thought, result.tool_calls, result.finish_reason) == ("a ", "well", (), "stop")
    writes([*call, *ids("b STOP"), OPENS, *ids("thought\nmore"), CLOSES, END])
    result = asked(talker, stop=["STOP"], tools=TOOLS)
    assert [c.name for c in result.tool_calls] == ["look"] and (result.text, result.thought) == ("b ", "")


def test_a_stop_text_is_found_across_canvases_and_nothing_of_it_was_shown(talker, writes):
    first = ids("ab " * 40)[: CANVAS - 2]
    writes([*first, *ids("ST")], [*ids("OP here"), END])
    canvases = [e for e in talker.stream(Request("hi", stop=["STOP"])) if isinstance(e, TextCanvas)]
    assert "ST" not in canvases[0].text and [c.finish_reason for c in canvases] == [None, "stop"]
    assert "".join(c.text for c in canvases) == talker.tokenizer.decode(first)
    writes([*first, *ids("ST")], [*ids("ART here"), END])
    assert talker.generate(Request("hi", stop=["STOP"])).text.endswith("START here")


@pytest.mark.parametrize(
    "behind",
    [
        "<|tool_call>call:listen{}<tool_call|>",
        "<tool_call|>and a word",
        "<|tool_call>call:listen{",
        '<|tool_call>call:look{at:<|"|>',
        " and this, and that",
    ],
)
def test_the_only_call_ends_the_answer(talker, writes, behind):
    first = ids('Let me see.<|tool_call>call:look{at:<|"|>it<|"|>}<tool_call|>')
    writes([*first, *ids(behind)], [*ids("never read"), END])
    result = asked(talker, tools=TOOLS, parallel_tool_calls=False)
    assert [(c.name, c.arguments) for c in result.tool_calls] == [("look", {"at": "it"})]
    assert (result.text, result.finish_reason, result.tokens) == ("Let me see.", "tool_calls", first)
    assert len(result.canvases) == 1
    both = asked(talker, tools=TOOLS)
    assert len(both.canvases) > 1 and (len(both.tool_calls) > 1 or both.text != result.text)


def test_the_only_call_is_ended_by_the_mark_that_opens_another(talker, writes):
    writes([*ids('<|tool_call>call:look{at:<|"|>it<|"|>}<|tool_call>call:listen{}<tool_call|>'), END])
    result = asked(talker, tools=TOOLS, parallel_tool_calls=False)
    assert [c.name for c in result.tool_calls] == ["look"] and result.finish_reason == "tool_calls"
    assert result.tokens == ids('<|tool_call>call:look{at:<|"|>it<|"|>}')
    assert len(asked(talker, tools=TOOLS).tool_calls) == 2


def test_what_is_no_call_does_not_end_the_answer(talker, writes):
    writes([*ids('<|tool_call> <tool_call|><|tool_call>call:look{at:<|"|>it<|"|>}<tool_call|>'), END])
    (call,) = asked(talker, tools=TOOLS, parallel_tool_calls=False).tool_calls
    assert call.arguments == {"at": "it"}


def test_the_answer_is_not_cut_at_the_checkpoints_256_tokens(talker, writes):
    writes(*[[*ids(f"{i} " * 40)[: CANVAS - 1], 7] for i in range(6)], [*ids("end"), END])
    result = talker.generate(Request("hi"))
    assert result.finish_reason == "stop" and len(result.canvases) == 7
    assert talker.prepare(Request("hi")).settings.max_new_tokens == 8192
    assert talker.prepare(Request([5] * 16_000)).settings.max_new_tokens == 384
    assert talker.prepare(Request("hi", settings=GenerationConfig(max_new_tokens=10))).settings.max_new_tokens == 10


def test_a_loop_ends_the_text_with_a_reason(talker, writes):
    canvas = ids("the cat sat on a mat and " * 20)[:CANVAS]
    writes(canvas, canvas, canvas)
    result = asked(talker)
    assert (result.finish_reason, result.tokens) == ("repetition", canvas)
    writes(ids("ab cd " * 30)[:CANVAS])
    assert asked(talker).finish_reason == "repetition"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tools": "x"}, "tools are a str"),
        ({"tool_choice": 3}, "tool_choice must be"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": "smell"}, "tool_choice is 'smell', which is none of the tools look, listen"),
        ({"tools": [{"name": "x" * 500}], "tool_choice": "required"}, "a canvas has 64; shorten it"),
        ({"tools": TOOLS, "tool_choice": "look", "samples": 2}, "does not go with canvas and samples"),
        ({"tools": TOOLS, "tool_choice": "look", "canvas": "a{}"}, "does not go with canvas and samples"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls must be True or False"),
        ({"stop": "x"}, "stop must be a list of texts"),
        ({"stop": [""]}, "stop must be a list of texts"),
        ({"stop": [3]}, "stop must be a list of texts"),
        ({"thinking": True, "chat_template": False}, "thinking and tools are the chat template's"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(talker, fields, told):
    with pytest.raises(DGemmaError) as error:
        talker.prepare(Request("hi", **fields))
    assert told in str(error.value) and "\n" not in str(error.value)


def turn(*calls, **fields):
    return {"role": "assistant", "content": None,         "tool_calls": [
            {"id": c.id, "function": {"name": c.name, "arguments": json.dumps(c.arguments)}} for c in calls
        ], **fields}  # fmt: skip


def test_behind_a_call_the_models_own_tokens_are_the_prompt(talker, writes):
    """Thoughts survive a tool round that the client's history has lost them in."""
    said = [OPENS, *ids("thought\nI should look\n"), CLOSES, *ids('<|tool_call>call:look{at: "it" }<tool_call|>')]
    user = [{"role": "user", "content": "hi"}]
    writes([*said, 50])
    first = talker.generate(Request(user, tools=TOOLS, thinking=True))
    results = [{"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "seen"}]
    second = Request([*user, turn(*first.tool_calls), *results], tools=TOOLS, thinking=True)
    asked, prompt = talker.prepare(Request(user, tools=TOOLS, thinking=True)).ids, talker.prepare(second).ids
    assert prompt[: len(asked) + len(said) + 1] == [*asked, *said, 50]
    assert talker.tokenizer.decode(prompt[len(asked) + len(said) :]).startswith("<|tool_response>response:look{value:")
    writes([*said, 50])
    again = talker.generate(second)
    third = [*second.prompt, turn(*again.tool_calls), {"role": "tool", "content": "again"}]
    assert talker.prepare(Request(third, tools=TOOLS, thinking=True)).ids[: len(prompt)] == prompt

    other = Engine(talker.model, talker.tokenizer)  # knows nothing of it: the template's word
    rendered = other.prepare(second).ids
    assert rendered != prompt and "I should look" not in talker.tokenizer.decode(rendered)
    changed = Request([{"role": "user", "content": "ho"}, *second.prompt[1:]], tools=TOOLS, thinking=True)
    assert talker.prepare(changed).ids == other.prepare(changed).ids
    later = Request([*second.prompt, {"role": "assistant", "content": "ok"}, *user], tools=TOOLS, thinking=True)
    assert talker.prepare(later).ids == other.prepare(later).ids


def test_only_the_last_turns_are_kept():
    turns, calls = Turns(most=2), [ToolCall(f"c{i}", "f", {}) for i in range(3)]
    for call in calls:
        turns.keep([call], Turn((1,), (1,), (2,)))
    messages = [[{"role": "assistant", "content": "", "tool_calls": [{"id": c.id}]}] for c in calls]
    found = [turns.spliced(own, lambda m: [1, 3][: 1 + len(m)]) for own in messages]
    assert found == [None, [1, 2], [1, 2]]
