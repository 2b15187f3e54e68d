"""The live canvas: one step as rows (a pure function), and the command line on a terminal, whose screen is checked."""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import mlx.core as mx
import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wcwidth import wcwidth

from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.generate import main
from mlx_dgemma.terminal import watch
from mlx_dgemma.terminal.progress import ProgressLine
from mlx_dgemma.terminal.watch import SHADES, STOP, UNCERTAIN, TokenTexts, columns, drawable, live_canvas, picture
from tests.command import in_process
from tests.screen import Terminal, terminal_on_stderr

ROOT = Path(__file__).parents[2]
DARK = SHADES["dark"]
WIDE = os.terminal_size((100, 30))
FALLBACK = "--watch needs a terminal on stderr; showing progress instead\n"


class Words:
    """A tokenizer whose ids are indices of a list."""

    def __init__(self, words: list[str]):
        self.words = words

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


def a_step(entropy: list[float], accepted: list[bool], clamped: list[bool] | None = None) -> DenoisingStep:
    """A step whose draft is the ids 0, 1, 2 …"""
    ids = mx.array([list(range(len(entropy)))])
    flags = None if clamped is None else mx.array([clamped])
    return DenoisingStep(
        canvas_index=0, step=3, remaining=46, temperature=0.78, canvas=ids, draft=ids, entropy=mx.array([entropy]),
        log_p=mx.zeros(ids.shape), accepted=mx.array([accepted]), accepted_count=sum(accepted), mean_entropy=0.5,
        finished=False, clamped=flags,
    )  # fmt: skip


def draw(words: list[str], entropy: float = 0.0, accepted: bool = True, size=WIDE, stops=()) -> list[str]:
    """The rows' text where all positions are in the same state."""
    step = a_step([entropy] * len(words), [accepted] * len(words))
    return ["".join(s.text for s in row) for row in picture(step, TokenTexts(Words(words)), stops, size)]


@pytest.mark.parametrize("shade", ["dark", "light"])
def test_settled_positions_are_blue_and_counted(shade):
    step = a_step([0.0] * 3 + [0.3], [True] * 3 + [False], [False, False, True, False])
    rested = dataclasses.replace(step, computed=(1, 3))
    row, line = picture(rested, TokenTexts(Words(list("abcd"))), (), WIDE, shade)
    styles = {segment.text: str(segment.style) for segment in row}
    assert styles == {"a": watch.RESTING[shade], "b": "none", "c": "bold underline", "d": SHADES[shade][1]}
    assert line[0].text.endswith(" · computed 2/4")
    *_, [plain] = picture(step, TokenTexts(Words(list("abcd"))), (), WIDE, shade)
    assert "computed" not in plain.text


CHARACTERS = st.one_of(
    st.characters(),
    st.sampled_from(
        "\n\t\r\x1b\x07\x7f\x9b\u0301\u0e31\u200d\ufe0f\u202e\u2028\u00ad\ud800日本語　🙂👨👩🇩🇪☀❤ｱ각ᄀ\u1161\U0001faea"
    ),
)
WORDS = st.lists(
    st.one_of(st.text(CHARACTERS, max_size=12), st.sampled_from(["[bold]", "\x1b[2J", "\n\n", ""])), min_size=1
)


@given(WORDS, st.data(), st.integers(1, 90), st.integers(1, 40))
@example(["日", "\u0301", "🙂\ufe0f"], None, 1, 1)
@settings(max_examples=300, deadline=None)
def test_rows_fit_any_terminal(words, data, width, height):
    """Every row stays on one line of a terminal, that of wcwidth's tables too, and holds nothing it would obey."""
    many = lambda values: data.draw(st.lists(values, min_size=len(words), max_size=len(words)))  # noqa: E731
    entropy, accepted, clamped = [0.0] * len(words), [True] * len(words), None
    if data is not None:
        entropy = many(st.floats(0, 13) | st.just(float("nan")))
        accepted, clamped = many(st.booleans()), data.draw(st.none() | st.just([True] * len(words)))
    size = os.terminal_size((width, height))
    rows = picture(a_step(entropy, accepted, clamped), TokenTexts(Words(words)), (), size)
    texts = ["".join(segment.text for segment in row) for row in rows]
    assert 1 <= len(rows) <= max(1, height - 2)
    for text in texts:
        assert sum(max(wcwidth(c), 0) for c in text) <= max(1, width - 1)
        assert not [c for c in text if unicodedata.category(c).startswith("C") or c in "\u2028\u2029"]
    if width >= 20 and height >= 10:
        assert "".join("".join(texts).split()).endswith(f"accepted{sum(accepted)}/{len(words)}·entropy0.500")
    screen = pyte.Screen(width, height)
    pyte.Stream(screen).feed("\r\n".join(texts))
    assert screen.cursor.y == len(rows) - 1


@pytest.mark.parametrize(
    ("entropy", "colour"), list(zip((0.0, UNCERTAIN[0], UNCERTAIN[1], UNCERTAIN[2]), DARK, strict=True))
)
def test_entropy_fades_what_is_not_accepted(entropy, colour):
    row = picture(a_step([entropy], [False]), TokenTexts(Words(["日本"])), (), WIDE)[0]
    assert [str(segment.style) for segment in row] == [colour]
    assert row[0].text == ("░░░░" if entropy >= UNCERTAIN[-1] else "日本")
    just_below = picture(a_step([entropy - 1e-4], [False]), TokenTexts(Words(["日本"])), (), WIDE)[0]
    assert (str(just_below[0].style) == colour) == (entropy == 0.0)


def test_accepted_is_plain_and_clamped_underlined():
    step = a_step([5.0, 5.0, 0.2], [True, False, False], [False, True, False])
    row = picture(step, TokenTexts(Words(["a", "b", "c"])), (), WIDE)[0]
    assert [(s.text, str(s.style)) for s in row] == [("a", "none"), ("b", "bold underline"), ("c", DARK[1])]


def test_on_a_light_terminal_fainter_is_lighter():
    greys = {shade: [int(name[4:]) for name in names] for shade, names in SHADES.items()}
    assert greys["dark"] == sorted(greys["dark"], reverse=True) and greys["light"] == sorted(greys["light"])
    row = picture(a_step([0.0], [False]), TokenTexts(Words(["a"])), (), WIDE, "light")[0]
    assert str(row[0].style) == SHADES["light"][0]


def test_markup_and_control_characters_are_literal():
    assert draw(["[bold]", "x", "[/bold]", ":smile:"])[0] == "[bold]x[/bold]:smile:"
    assert draw(["\x1b[31m", "\r", "\x07", "\x7f"])[0] == "␛[31m␍␇␡"
    assert draw(["\x9b", "\u202e", "\ufffd\ufffd", "\ud800"])[0] == "�����"
    assert drawable("") == "�" and drawable("👨\u200d👩") == "👨�👩" and drawable("☀\ufe0f") == "☀"


def test_newlines_end_a_row():
    assert draw(["a", "\n\n", "b\n"])[:3] == ["a↵", "↵", "b↵"]
    assert draw(["a", "\n"], entropy=2.0, accepted=False)[0] == "░░"


def test_wide_characters_wrap_whole():
    assert draw(["日本", "語"], size=os.terminal_size((6, 30)))[:2] == ["日本", "語"]
    assert columns("日本語") == 6 and columns("e\u0301") == 1


def test_no_character_is_wider_than_counted():
    drawn = (c for c in map(chr, range(sys.maxunicode + 1)) if c != "\n" and drawable(c) == c)
    assert [hex(ord(c)) for c in drawn if wcwidth(c) > columns(c)] == []


def test_a_combining_mark_at_the_start_stands_on_a_circle():
    assert draw(["\u0301", "a", "\u0301"])[0] == "◌\u0301a\u0301"


def test_nothing_behind_a_settled_stop_token_and_a_filler_behind_another():
    words = ["a", "b", "<eos>", "c", "d"]
    assert draw(words, stops=[2])[0] == f"ab{STOP}"
    assert draw(words, 0.05, False, stops=[2])[0] == f"ab{STOP}"
    assert draw(words, 0.2, False, stops=[2])[0] == f"ab{STOP}··"
    assert draw(words, 2.0, False, stops=[2])[0] == "░░░░░"


def test_a_stop_token_in_a_gap_hides_nothing_that_is_given():
    event = a_step([0.0] * 4, [True] * 4, [False, True, True, False])
    rows = picture(event, TokenTexts(Words(["E", "a", "b", "E"])), [0, 3], WIDE)
    assert "".join(segment.text for segment in rows[0]) == STOP + "ab" + STOP


def test_a_tall_canvas_is_cropped_and_the_figures_stay():
    rows = draw(["\n"] * 50, size=os.terminal_size((100, 10)))
    assert rows[:-1] == ["↵"] * 6 + ["… 44 more rows"] and "accepted 50/50 · entropy 0.500" in rows[-1]
    narrow = draw(["\n"] * 50, size=os.terminal_size((40, 10)))
    assert len(narrow) == 8 and narrow[-2:] == [
        "canvas 1 · step 3/48 · temperature",
        "0.78 · accepted 50/50 · entropy 0.500",
    ]


def test_ids_are_shown_without_a_tokenizer():
    step = a_step([0.0] * 12, [True] * 12)
    assert picture(step, TokenTexts(None), (), WIDE)[0][0].text == "0 1 2 3 4 5 6 7 8 9 10 11 "


def test_a_token_is_decoded_once():
    words = Words(["a"])
    texts = TokenTexts(words)
    assert texts[0] == "a"
    words.words = ["b"]
    assert texts[0] == "a"


def test_without_a_terminal_it_says_so_and_falls_back(capsys):
    plain = in_process(capsys, "--prompt", "roman 3")
    watched = in_process(capsys, "--prompt", "roman 3", "--watch")
    assert watched[:2] == plain[:2] == (0, "III\n")
    assert watched[2].startswith(FALLBACK) and watched[2].removeprefix(FALLBACK).startswith("prompt:")


def test_watching_quietly_is_bad_usage(capsys):
    code, out, err = in_process(capsys, "--prompt", "x", "--watch", "--quiet")
    assert (code, out) == (2, "") and "--quiet" in err and "--watch" in err and err.count("\n") == 1


def test_a_dumb_terminal_falls_back(monkeypatch):
    progress = ProgressLine(enabled=True)
    with terminal_on_stderr(monkeypatch) as shown:
        assert live_canvas(progress, None, ()) is not progress
        monkeypatch.setenv("TERM", "dumb")
        assert live_canvas(progress, None, ()) is progress
    assert b"".join(shown).decode() == FALLBACK.replace("\n", "\r\n")


def test_json_and_a_canvas(capsys, monkeypatch):
    with terminal_on_stderr(monkeypatch) as shown:
        assert main(["--prompt", "roman 3", "--json", "--watch"]) == 0
    assert "III■" in b"".join(shown).decode()
    assert json.loads(capsys.readouterr().out)["text"] == "III"


def test_ctrl_c_waits_for_a_drawing_to_be_complete(capsys, monkeypatch):
    class Interrupted(watch.Live):
        def start(self, refresh: bool = False) -> None:
            super().start(refresh)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(watch, "Live", Interrupted)
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner may ignore it
    try:
        with terminal_on_stderr(monkeypatch) as pieces:
            assert main(["--prompt", "roman 3", "--watch"]) == 130
    finally:
        signal.signal(signal.SIGINT, heeded)
    shown = b"".join(pieces).decode()
    assert "step 1/48" in shown and "(interrupted)" in shown and capsys.readouterr().out == ""
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


# two canvases, several steps each
COUNT = ["--prompt", "count 18 to 50", "--t-max", "1.6", "--t-min", "1.5", "--confidence-threshold", "1e-9"]
COUNT += ["--max-denoising-steps", "4", "--entropy-bound", "1e-5"]


@functools.cache
def count() -> str:
    """The text without --watch, for which rich need not be there."""
    code = "import sys; from mlx_dgemma.generate import main\nmain(sys.argv[1:])\nassert 'rich' not in sys.modules"
    command = [sys.executable, "-c", code, *COUNT, "--quiet"]
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.rstrip("\n")


@pytest.mark.slow
def test_the_canvas_comes_and_goes_and_the_text_stays():
    text = count()
    terminal = Terminal(30, 24, *COUNT)
    assert terminal.rows()[0].startswith("18 19 20") and "canvas 1 · step 1/4" in terminal.rows()[-3]
    assert terminal.screen.cursor.hidden
    for _ in range(3):
        terminal.next()
    assert "canvas 1 · step 4/4" in terminal.rows()[-3]
    terminal.next()
    assert terminal.text() == text[:64] and not terminal.screen.cursor.hidden
    terminal.next()
    rows = terminal.rows()
    assert text[60:64] == "38 3" and "canvas 2 · step 1/4" in rows[-3]
    assert " 38 39 40 " in terminal.text()  # the number that both canvases share is whole
    rows = terminal.finish().rows()
    assert terminal.process.returncode == 0 and not terminal.screen.cursor.hidden
    assert terminal.text().startswith(text + " ")
    assert rows[4].startswith("prompt:") and "canvas 1" not in " ".join(rows)
    assert sum("tokens per forward" in row or "steps:" in row for row in rows) == 1


@pytest.mark.slow
def test_stdout_in_a_file_gets_the_same_bytes(tmp_path):
    with open(tmp_path / "text", "wb") as file:
        terminal = Terminal(100, 20, *COUNT, stdout=file)
        assert "canvas 1 · step 1/4" in terminal.rows()[-1]
        rows = terminal.finish().rows()
    assert (tmp_path / "text").read_text() == count() + "\n"
    assert rows[0].startswith("prompt:") and not terminal.screen.cursor.hidden


@pytest.mark.slow
@pytest.mark.parametrize("events", [2, 7], ids=["first canvas", "second canvas"])
def test_ctrl_c_takes_the_canvas_away(events):
    text = count()
    terminal = Terminal(40, 20, *COUNT)
    for _ in range(events - 1):
        terminal.next()
    assert terminal.screen.cursor.hidden
    os.write(terminal.master, b"\x03")  # typed: the terminal echoes ^C and sends SIGINT
    rows = terminal.finish().rows()
    assert terminal.process.returncode == 130 and not terminal.screen.cursor.hidden
    committed = [text[:40], text[40:64]] if events > 5 else []
    assert rows[: len(committed) + 1][:-1] == committed and rows[len(committed)].startswith("prompt:")
    assert "(interrupted)" in "".join(rows) and "^C" not in "".join(rows) and "canvas 2 ·" not in "".join(rows)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[(23, 20)], [(120, 20), (120, 9)]], ids=["narrower", "wider and lower"])
def test_a_resized_terminal_keeps_nothing_of_the_old_canvas(sizes):
    terminal = Terminal(50, 20, *COUNT)
    for _ in range(5):
        terminal.next()
    for i, size in enumerate(sizes):
        assert f"canvas 2 · step {i + 1}/4" in terminal.text()
        terminal.resize(*size)
        text = terminal.next().text()
        assert text.count("canvas 2 ·") == 1 and text.count("accepted") == 1 and text.startswith(count()[:64])
    assert re.match(re.escape(count()) + " +prompt:", terminal.finish().text())
