"""Conversations: what is asked, taken back, kept in a file and loaded again."""

import json

import pytest

from mlx_dgemma import DGemmaError, GenerationConfig
from mlx_dgemma.chat.commands import COMMANDS, Chat, obey
from mlx_dgemma.chat.session import Session
from mlx_dgemma.text.events import GenerationResult, Stats
from mlx_dgemma.text.prompts import prompt_ids
from mlx_dgemma.text.reply import ToolCall
from tests.text.gemma import gemma_tokenizer

STATS = Stats(1, 0.1, 1, 1, 2, 0.1, 0)


def result(text: str, **fields) -> GenerationResult:
    return GenerationResult(text, [1], [[1]], [2], "stop", STATS, **fields)


@pytest.fixture
def session() -> Session:
    made = Session("model")
    made.keep("one", result("ONE", thought="hm"))
    made.keep("two", result("", tool_calls=(ToolCall("c", "f", {"a": 1}),)))
    return made


def unseen(path: str, budget: int | None):
    raise AssertionError(f"{path} is no image")


def refused(act, *arguments) -> str:
    with pytest.raises(DGemmaError) as error:
        act(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_request_has_the_turns_before_it(session):
    session.system = "S"
    request = session.request("three")
    assert [m["role"] for m in request.prompt] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert request.prompt[2] == {"role": "assistant", "content": "ONE", "reasoning": "hm"}
    assert request.prompt[4]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert request.seed == 2 and Session("m", seed=7).request("x").seed == 7
    alone = Session("embedded", alone=True, messages=session.messages)
    assert [m["role"] for m in alone.request("three").prompt] == ["user"]


def test_a_turn_is_taken_back_whole(session):
    assert [session.undo() for _ in range(3)] == ["two", "one", None] and session.messages == []


def test_results_stand_behind_the_calls_that_wait_for_them(session):
    calls = (ToolCall("a", "f", {"x": 1}), ToolCall("b", "g", {}))
    session.keep("three", result("", tool_calls=calls))
    chat = Chat(session, unseen)
    assert obey(chat, "/result rain") == "another call waits for a result" and not chat.goes_on
    assert obey(chat, "/result  and sun ") is None and chat.goes_on
    assert "no call waits for a result" in refused(obey, chat, "/result more")
    request = session.request(None)
    assert [m["role"] for m in request.prompt[-4:]] == ["user", "assistant", "tool", "tool"]
    assert [(m["tool_call_id"], m["content"]) for m in request.prompt[-2:]] == [("a", "rain"), ("b", "and sun")]
    alone = Session("embedded", alone=True, messages=session.messages)
    assert alone.request(None).prompt == request.prompt[-4:]
    session.take_results_back()
    assert session.add_result("snow") is False and session.add_result("hail") is True
    session.keep(None, result("both"))
    assert session.messages[-1]["content"] == "both" and session.undo() == "three"
    assert session.messages[-1]["role"] == "assistant" and len(session.messages) == 4


def test_settings_are_set_by_name_and_the_others_stay(session):
    session.set("entropy_bound", "0.2")
    session.set("token_choice", "argmax")
    session.set("seed", "5")
    assert session.settings == GenerationConfig(entropy_bound=0.2, token_choice="argmax") and session.seed == 5
    assert "no setting 'x'; there are seed" in refused(session.set, "x", "1")
    assert "entropy_bound must be" in refused(session.set, "entropy_bound", "-1")
    assert "seed must be" in refused(session.set, "seed", "two")
    assert session.settings.entropy_bound == 0.2 and session.seed == 5


def test_a_file_leads_to_the_same_prompt(session, tmp_path):
    session.system, session.thinking = "S \ud83d\ude00 <turn|>", True
    session.tools = ({"name": "f", "description": "d", "parameters": {"properties": {"a": {"type": "integer"}}}},)
    session.set("max_new_tokens", "64")
    session.save(str(tmp_path / "c.json"))
    again = Session("model")
    assert again.load(str(tmp_path / "c.json")) is None and again == session
    one, other = (s.request("three") for s in (session, again))
    tokenizer = gemma_tokenizer()
    ids = [prompt_ids(tokenizer, r.prompt, thinking=r.thinking, tools=r.tools) for r in (one, other)]
    assert ids[0] == ids[1] and one.settings == other.settings and one.seed == other.seed
    assert Session("other").load(str(tmp_path / "c.json")) == "this conversation was held with 'model'"


def damaged(**fields):
    good = {"form": 1, "checkpoint": "m", "seed": 0, "thinking": False, "settings": {}, "tools": [], "system": None}
    return json.dumps({**good, "messages": [], **fields})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is no conversation"),
        (damaged(form=2), "is no conversation"),
        (damaged(messages=3), "its messages are damaged"),
        (damaged(system=3), "its messages are damaged"),
        (damaged(messages=[{"role": "x"}]), "unknown role"),
        (damaged(seed="x"), "its settings are damaged"),
        (damaged(seed=-1), "its settings are damaged"),
        (damaged(settings={"x": 1}), "x"),
        (damaged(settings={"t_min": "x"}), "t_min"),
        (damaged(tools=[3]), "tool 1 is a int"),
    ],
)
def test_what_is_no_conversation_changes_nothing(session, tmp_path, content, told):
    (tmp_path / "c.json").write_text(content)
    before = list(session.messages)
    assert told in refused(session.load, str(tmp_path / "c.json")) and session.messages == before
    assert "cannot be read" in refused(session.load, str(tmp_path / "none"))


def test_every_command_says_something_or_does_it(session, tmp_path):
    chat = Chat(session, unseen)
    assert all(name in obey(chat, "/help") for name in COMMANDS)
    assert obey(chat, "/system be brief") == "system: be brief" and session.system == "be brief"
    assert obey(chat, "/system") == "no system turn" and session.system is None
    assert [obey(chat, f"/think{own}") for own in (" on", "", "")] == [f"thinking is {o}" for o in ("on", "off", "on")]
    (tmp_path / "t.json").write_text('{"tools": [{"name": "f"}]}')
    assert obey(chat, f"/tools {tmp_path / 't.json'}") == "1 tools" == obey(chat, "/tools")
    assert obey(chat, "/tools off") == "0 tools"
    assert obey(chat, "/set entropy_bound 0.3") == "entropy_bound is 0.3"
    assert obey(chat, f"/save {tmp_path / 'c.json'}").startswith("saved in")
    assert obey(chat, "/undo") == "taken back: two" and obey(chat, "/retry") is None
    assert (chat.ask, session.seed, session.messages) == ("one", 1, [])
    assert obey(chat, f"/load {tmp_path / 'c.json'}") == "2 turns" and session.seed == 0
    assert obey(chat, f"/trace {tmp_path / 'r.npz'}").startswith("the next answer") and chat.trace
    assert obey(chat, "/stats") == "nothing was asked yet"
    assert obey(chat, "/clear") == "forgotten" and session.messages == []
    assert obey(chat, " /exit ") is None and chat.is_over


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("/nope", "no command /nope; /help lists them"),
        ("/think maybe", "on or off"),
        ("/tools /nonesuch", "cannot be read as tools"),
        ("/set entropy_bound", "takes a field and a value"),
        ("/save", "/save takes a file"),
        ("/load", "/load takes a file"),
        ("/trace", "/trace takes a file"),
        ("/trace /nonesuch/x.npz", "there is no folder"),
        ("/save /nonesuch/x.json", "there is no folder"),
        ("/result", "/result takes what the tool found"),
        ("/result rain", "no call waits for a result"),
        ("/undo", "nothing to take back"),
        ("/retry", "nothing to ask again"),
    ],
)
def test_what_a_command_cannot_do_is_one_line(typed, told):
    assert told in refused(obey, Chat(Session("m"), unseen), typed)
