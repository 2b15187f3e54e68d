"""Prompts lose nothing without a word: characters, parts of messages, a missing template, what does not fit."""

import shutil

import pytest

from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.text import run as runs
from mlx_dgemma.text.prompts import prompt_ids
from tests.embedded import without_talks


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def refused(engine, prompt, **fields) -> str:
    with pytest.raises(DGemmaError) as error:
        engine.prepare(Request(prompt, **fields))
    assert "\n" not in str(error.value)
    return str(error.value)


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}]


def test_a_folder_without_a_chat_template_takes_raw_prompts_only(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "c")
    (tmp_path / "c" / "chat_template.jinja").unlink()
    bare = Engine.load(tmp_path / "c")
    for prompt in ("spell 42", user("spell 42")):
        assert "has no chat template" in refused(bare, prompt)
    raw = "<bos><|turn>user\nspell 42<turn|>\n<|turn>model\n"
    assert bare.generate(Request(raw, chat_template=False)).text == "forty-two"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("upper é", "'é' (U+00E9)"),
        ("日本 upper 日", "'日' (U+65E5), '本' (U+672C)"),
        ("upper \x07", r"'\x07' (U+0007)"),
        ("".join(map(chr, range(0x400, 0x420))), "27 more"),
    ],
)
def test_characters_that_the_tokenizer_does_not_know_are_named(engine, text, named):
    for prompt in (text, user(text)):
        assert f"does not know: {named.split(',')[0]}" in refused(engine, prompt) or named in refused(engine, prompt)
    assert named in refused(engine, text, chat_template=False)
    assert named in refused(engine, "upper a", canvas=text + "{}")
    assert named in refused(engine, "upper a", canvas=CanvasPlan(draft=text))
    assert "the draft has characters" in refused(engine, "upper a", canvas=CanvasPlan(draft=text))


def test_special_tokens_spelled_out_are_known(engine):
    assert engine.prepare(Request("upper <unk> <turn|>", chat_template=False)).ids


@pytest.mark.parametrize("content", ["upper abc", " upper abc\n", [{"type": "text", "text": " upper abc "}]])
def test_strings_and_parts_are_the_same_and_trimmed(engine, content):
    assert prompt_ids(engine.tokenizer, user(content)) == prompt_ids(engine.tokenizer, "upper abc")
    assert engine.generate(Request(user(content))).text == "ABC"


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
            "message 1 (user): content of type 'input_audio'",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "video"}]},
            "content of type 'video' is not",
        ),
        ({"role": "user", "content": ["a"]}, "content of type 'str' is not supported"),
        ({"role": "user", "content": [{"type": "text"}]}, "content of type 'text'"),
        ({"role": "user", "content": 7}, "content of type 'text'"),
        ({"role": "user", "content": None}, "message 1 (user) has no content"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
            "call 1 has no function with a name",
        ),
        ({"role": "user", "content": "a\ud800"}, "not valid UTF-8"),
        ({"role": 3, "content": "a"}, "prompt must be a text, a list of"),
        ({"content": "a"}, "prompt must be a text, a list of"),
    ],
)
def test_what_a_message_would_lose_is_refused_by_name(engine, message, complaint):
    assert complaint in refused(engine, [message])


def test_calls_that_a_template_would_lose_are_refused(tmp_path):
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    told = "the checkpoint's chat template has no place for tool calls ('f'); leave them out"
    assert told in refused(Engine.load(without_talks(tmp_path)), [message])


def test_what_does_not_fit_the_positions_is_refused_before_any_work(engine):
    assert "template: a gap {999999999} is longer than any context" in refused(engine, "upper a", canvas="{999999999}")
    assert "template: a gap {999999999…} is longer" in refused(engine, "upper a", canvas="{" + "9" * 5000 + "}")
    assert "canvas: 4090 given tokens" in refused(engine, "upper a", canvas=[None] * 4090)
    assert engine.prepare(Request("upper a", canvas=[None] * 3000))
    huge = GenerationConfig(max_new_tokens=2**62)
    assert "more than max_position_embeddings (4096)" in refused(engine, "upper a", settings=huge)


def test_samples_that_do_not_fit_memory_are_refused_before_any_work(engine, monkeypatch):
    monkeypatch.setattr(runs.memory, "total", lambda: 1_000_000_000)
    told = refused(engine, "upper a", samples=1_000_000)
    assert "this machine has 1 GB; ask for at most" in told
    most = int(told.rsplit(" ", 1)[1])
    assert engine.prepare(Request("upper a", samples=most)) and "samples take" in refused(
        engine, "upper a", samples=most + 1
    )


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (["é", "ü"], "does not know"),
        (["ab", "a\ud800"], "not valid UTF-8"),
        (["a", "a "], None),
        (["<bos>", "<bos>x"], None),
    ],
)
def test_labels_lose_nothing_either(engine, labels, complaint):
    if complaint is None:
        assert set(engine.choose(Request("upper a"), "{?}", labels)) == set(labels)
    else:
        with pytest.raises(DGemmaError, match=complaint):
            engine.choose(Request("upper a"), "{?}", labels)


def test_labels_that_are_no_tokens_or_the_same_tokens_are_refused(engine, monkeypatch):
    encode = type(engine.tokenizer).encode
    ids = {"none": [], "other": engine.tokenizer.encode("a", add_special_tokens=False)}
    monkeypatch.setattr(type(engine.tokenizer), "encode", lambda self, t, **k: ids.get(t, encode(self, t, **k)))
    with pytest.raises(DGemmaError, match="label 'none' has no token"):
        engine.choose(Request("upper a"), "{?}", ["none", "a"])
    with pytest.raises(DGemmaError, match="labels 'a' and 'other' are the same tokens"):
        engine.choose(Request("upper a"), "{?}", ["a", "other"])
