"""Images in a conversation: attached by a command or a file's name, kept in it, never printed as text."""

import base64
import json
import shutil
import subprocess
import sys
from functools import partial

import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig
from mlx_dgemma.chat.__main__ import _turn
from mlx_dgemma.chat.commands import Chat, heed
from mlx_dgemma.chat.images import attach, paths_in
from mlx_dgemma.chat.session import Session
from mlx_dgemma.text.images import BUDGETS
from mlx_dgemma.text.prefixes import PrefixStore
from mlx_dgemma.trace import load_trace
from tests.seeing import picture, png, seeing_engine, write_pictures, write_seeing, write_tokenizer  # noqa: F401


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[str]:
    """0.png, 1.png, 2.png in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_pictures(tmp_path, (0, 1, 2))


@pytest.fixture
def engine(seeing_engine) -> Engine:  # noqa: F811
    return Engine(seeing_engine.model, seeing_engine.tokenizer, "seeing", PrefixStore())


@pytest.fixture
def chat(engine) -> Chat:
    settings = GenerationConfig(max_new_tokens=8, max_denoising_steps=2)
    return Chat(Session("seeing", settings=settings), partial(attach, engine.model))


def say(engine: Engine, chat: Chat, *lines: str) -> None:
    for line in lines:
        _turn(engine, chat, line, watch=False, delay=0.0)


def refused(act, *arguments) -> str:
    with pytest.raises(DGemmaError) as error:
        act(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def url(number: int) -> dict:
    content = base64.b64encode(png(number)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}


@pytest.mark.parametrize(
    ("typed", "paths", "text"),
    [
        ("what is in 0.png", [], "what is in 0.png"),
        ("  two blanks ", [], "  two blanks "),
        ("/undo", [], "/undo"),
        ("{0}", ["{0}"], ""),
        ("{0} ", ["{0}"], ""),
        ("{0} what is this?", ["{0}"], "what is this?"),
        ("{0}\n\nwhat\nis this? ", ["{0}"], "what\nis this?"),
        ("{0} {1} which is older?", ["{0}", "{1}"], "which is older?"),
        ("'{0}' \"{1}\" isn't it?", ["{0}", "{1}"], "isn't it?"),
        ("0.png", ["0.png"], ""),
        ("0.png, what is it?", [], "0.png, what is it?"),
        ("3.png", [], "3.png"),
        ("notes.txt", [], "notes.txt"),
        ("folder.png", [], "folder.png"),
        (r"my\ cat.JPG what?", ["my cat.JPG"], "what?"),
        ("'my cat.JPG' what?", ["my cat.JPG"], "what?"),
        ("my cat.JPG", ["my cat.JPG"], ""),
        ("my cat.JPG what?", [], "my cat.JPG what?"),
        (r"it\'s\ \"1\".webp", ['it\'s "1".webp'], ""),
        (r'"it\'s \"1\".webp"', [], r'"it\'s \"1\".webp"'),
        (r'"it' + r"'s \"1\".webp" + '"', ['it\'s "1".webp'], ""),
        ("'it'\\''s \"1\".webp'", ['it\'s "1".webp'], ""),
        ('it\'s "1".webp', ['it\'s "1".webp'], ""),
        ("shot 3.14.15\u202fPM.png", ["shot 3.14.15\u202fPM.png"], ""),
        ("shot\\ 3.14.15\u202fPM.png go", ["shot 3.14.15\u202fPM.png"], "go"),
        ("~/0.png ~", ["~/0.png"], "~"),
        ("\0.png", [], "\0.png"),
        ("\ud800.png", [], "\ud800.png"),
        ("'0.png", [], "'0.png"),
        ("\\", [], "\\"),
        ("x" * 100_000 + ".png", [], "x" * 100_000 + ".png"),
        ("'" * 100_000 + ".png", [], "'" * 100_000 + ".png"),
        ('\\"' * 50_000 + '".png', [], '\\"' * 50_000 + '".png'),
    ],
    ids=range(33),
)
def test_names_of_files_at_the_beginning_of_a_line(files, tmp_path, monkeypatch, typed, paths, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("my cat.JPG", 'it\'s "1".webp', "shot 3.14.15\u202fPM.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    named = [path.format(*files) for path in paths]
    assert paths_in(typed.format(*files) if "{" in typed else typed) == (named, text)


def test_an_image_goes_with_the_next_question_and_no_other(engine, chat, files, capsys):
    assert heed(chat, f"/image {files[1]}") == f"attached: {files[1]}, 60×60, 64 tokens" and chat.ask is None
    heed(chat, "/image 0.png")
    assert heed(chat, "/image") == f"{files[1]}, 60×60, 64 tokens\n0.png, 300×10, 45 tokens"
    say(engine, chat, "what", "and")
    assert [m["role"] for m in chat.session.messages] == ["user", "assistant"] * 2
    assert chat.session.messages[0]["content"] == [url(1), url(0), {"type": "text", "text": "what"}]
    assert chat.session.messages[2]["content"] == "and" and heed(chat, "/image") == "no image is attached"
    out, err = capsys.readouterr()
    first, second = (line for line in err.splitlines() if "tokens/s" in line)
    assert ", 2 images of 64 + 45 tokens seen in" in first and ", 2 images of 64 + 45 tokens · length" in second
    assert "base64" not in out + err and heed(chat, "/stats") == second
    assert engine.generate(chat.session.request("more")).stats.cached_tokens > 64 + 45


def test_a_name_attaches_and_what_stands_behind_it_is_asked(engine, chat, files, capsys):
    say(engine, chat, files[2], f"{files[0]} {files[1]} what", "'1.png' again")
    first, second = (m["content"] for m in chat.session.messages if m["role"] == "user")
    assert first == [url(2), url(0), url(1), {"type": "text", "text": "what"}]
    assert second == [url(1), {"type": "text", "text": "again"}]
    err = capsys.readouterr().err
    assert err.startswith(f"attached: {files[2]}, 37×50, 63 tokens\nattached: {files[0]}")


def test_images_can_be_dropped_and_a_file_may_be_called_off(chat, files, tmp_path):
    shutil.copy(files[0], tmp_path / "off")
    assert heed(chat, "/image ./off").startswith("attached: ./off") and heed(chat, "/image off") == "1 image dropped"
    heed(chat, "0.png 1.png")
    assert heed(chat, "/image off") == "2 images dropped" and heed(chat, "/image off") == "0 images dropped"
    heed(chat, "0.png")
    assert heed(chat, "/clear") == "forgotten" and chat.images == []


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("/image none.png", "none.png cannot be read (No such file or directory); give PNG, JPEG"),
        ("/image none at all.png", "none at all.png cannot be read"),
        ("/image 'none at all.png'", "none at all.png cannot be read"),
        ("/image .", ". cannot be read (Is a directory)"),
        ("/image 0.png none.png", "none.png cannot be read"),
        ("/image text.png", "text.png: it is no image; give PNG"),
        ("text.png", "text.png: it is no image; give PNG"),
        ("0.png text.png what?", "text.png: it is no image; give PNG"),
        ("/image empty.png", "empty.png is empty"),
        ("cut.png", "cut.png cannot be decoded"),
    ],
)
def test_what_cannot_be_attached_is_one_line_at_once_and_nothing_is(engine, chat, files, tmp_path, typed, told, capsys):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(png(1)[:3000])
    assert told in refused(heed, chat, typed) and chat.images == [] and chat.ask is None
    say(engine, chat, typed)
    assert chat.session.messages == [] and capsys.readouterr().err.count("\n") == 1


def test_a_checkpoint_that_cannot_see_says_so_at_once(files, model):
    chat = Chat(Session("blind"), partial(attach, model))
    for typed in ("/image 0.png", f"{files[0]} what?"):
        assert model.no_eyes == refused(heed, chat, typed) and chat.ask is None


def test_images_stay_attached_to_a_question_that_fails(engine, chat, files, capsys):
    say(engine, chat, "0.png", "é" * 3000)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "max_position_embeddings" in error and error.endswith("; images stay attached, /image off drops them")
    say(engine, chat, "/nope")
    assert capsys.readouterr().err == "error: no command /nope; /help lists them\n"
    say(engine, chat, "what")
    assert chat.session.messages[0]["content"] == [url(0), {"type": "text", "text": "what"}] and not chat.images


def test_taking_back_and_asking_again(engine, chat, files, capsys):
    say(engine, chat, "0.png what", "1.png")
    assert len(chat.images) == 1
    say(engine, chat, "/retry")
    assert chat.session.messages[0]["content"] == [url(0), {"type": "text", "text": "what"}]
    assert chat.session.seed == 1 and len(chat.session.messages) == 2 and len(chat.images) == 1
    assert heed(chat, "/undo") == "taken back: [image]\nwhat" and chat.session.messages == []
    assert "base64" not in "".join(capsys.readouterr())


def test_a_file_of_a_conversation_is_all_that_is_needed(engine, chat, files, tmp_path):
    chat.session.set("image_tokens", "140")
    assert heed(chat, "1.png").endswith("121 tokens")
    say(engine, chat, "what")
    (tmp_path / "1.png").write_bytes(png(2))  # a later change changes nothing
    before = engine.prepare(chat.session.request("more"))
    heed(chat, "/save c.json")
    for name in files:
        (tmp_path / name).unlink()
    again = Session("seeing")
    assert again.load("c.json") is None and again == chat.session and again.image_tokens == 140
    after = engine.prepare(again.request("more"))
    assert after.names == before.names and [own.tokens for own in after.pictures] == [121]
    assert heed(chat, "/load c.json") == "1 turns"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image_tokens": 141}, "image_tokens must be 70, 140, 280, 560, 1120 or null, got 141"),
        ({"image_tokens": True}, "image_tokens must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "has no image_url"),
        ({"messages": [{"role": "user", "content": [{**url(0), "image_url": "http://a/b"}]}]}, "are not fetched"),
        ({"messages": [{"role": "user", "content": [{**url(0), "image_url": "data:image/png;base64,?"}]}]}, "damaged"),
    ],
)
def test_a_damaged_file_changes_nothing(chat, tmp_path, changed, told):
    path = str(tmp_path / "c.json")
    heed(chat, f"/save {path}")
    (tmp_path / "c.json").write_text(json.dumps({**json.loads((tmp_path / "c.json").read_text()), **changed}))
    before = Session(**vars(chat.session))
    assert told in refused(chat.session.load, path) and chat.session == before


def test_how_many_tokens_an_image_has(chat, files):
    assert heed(chat, "/set image_tokens 560") == "image_tokens is 560"
    assert heed(chat, "1.png").endswith("60×60, 529 tokens") and chat.session.request("x").image_tokens == 560
    assert heed(chat, "/set image_tokens null") and heed(chat, "1.png").endswith("64 tokens")
    assert f"must be {', '.join(map(str, BUDGETS))} or null, got 'x'" in refused(heed, chat, "/set image_tokens x")


def test_a_trace_holds_no_pixels(engine, chat, files, capsys):
    say(engine, chat, "/trace r.npz", "1.png what")
    trace = load_trace("r.npz")
    part = {"type": "image", "width": 60, "height": 60, "tokens": 64}
    assert trace.prompt[0]["content"] == [part, {"type": "text", "text": "what"}]
    assert "trace: r.npz" in capsys.readouterr().err


@pytest.mark.parametrize(("format", "kind"), [("PNG", "png"), ("JPEG", "jpeg"), ("GIF", "gif"), ("WEBP", "webp")])
def test_a_file_is_kept_as_it_is_whatever_its_name_says(chat, files, tmp_path, format, kind):
    picture(1).save(tmp_path / "0.png", format)
    heed(chat, "0.png")
    content = base64.b64encode((tmp_path / "0.png").read_bytes()).decode()
    assert chat.images[0].part["image_url"]["url"] == f"data:image/{kind};base64,{content}"


@pytest.mark.slow
def test_in_a_pipe(files, tmp_path):
    folder = str(write_tokenizer(write_seeing(tmp_path / "model")))

    def talk(lines: str, *arguments: str) -> subprocess.CompletedProcess:
        options = ("--max-tokens", "4", "--max-denoising-steps", "2", "--image-tokens", "70", *arguments)
        command = [sys.executable, "-m", "mlx_dgemma.chat", "--model", folder, *options]
        return subprocess.run(command, input=lines, capture_output=True, text=True, encoding="utf-8", timeout=120)

    done = talk("what\n1.png\nand\n/save c.json\n/image", "--image", "0.png", "--image", files[1])
    assert done.returncode == 0 and "attached: 0.png, 300×10, 45 tokens" in done.stderr
    assert done.stderr.count("attached: ") == 3 and done.stderr.endswith("no image is attached\n")
    kept = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert [len(m["content"]) for m in kept if m["role"] == "user"] == [3, 2]
    assert "base64" not in done.stdout + done.stderr
    again = talk("more", "--load", "c.json")
    assert again.returncode == 0 and "3 images of 45 + 64 + 64 tokens" in again.stderr
    none = talk("what", "--image", "none.png")
    assert (none.returncode, none.stdout) == (1, "") and none.stderr.startswith("error: none.png cannot be read")
