"""The SVG to share: which steps and where each glyph goes, the file, the picture in a browser."""

import dataclasses
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import picture
from mlx_dgemma import CanvasPlan
from mlx_dgemma.report.layout import MAX_PITCH, ROWS, chosen, frames, glyphs, grid, headline, origin
from mlx_dgemma.report.svg import DARK, LIGHT, draw
from mlx_dgemma.terminal.watch import FILLER, NOISE, NOISE_CELL, STOP, UNCERTAIN, columns, drawable
from mlx_dgemma.trace.trace import Trace
from tests.report.browser import Page, start
from tests.report.runs import HOSTILE, WORLD, hostile, recorded, settling, with_texts

SVG = "{http://www.w3.org/2000/svg}"
PROMPT = picture.REQUEST.prompt
GIVEN = "1{2}4{2}1{1}2{4}3{1}1"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return picture.run()


@pytest.fixture(scope="module")
def two_canvases() -> Trace:
    return recorded()


# ---- which steps, and where


def test_four_steps_that_differ(trace):
    shown = frames(trace)
    steps = chosen(shown)
    assert len(steps) == 4 and steps[0] == 0 and steps[-1] == len(shown) - 1 and steps == sorted(set(steps))
    assert all(shown[a] != shown[b] for a, b in pairwise(steps))


def test_steps_between_share_out_the_uncertainty():
    doubts = [30, 29, 28, 21, 20, 19, 15, 11, 9, 2, 0]
    run = [(*[("x", 1, False)] * doubt, ("y", 0, False)) for doubt in doubts]
    assert chosen(run) == [0, 4, 7, 10] and [doubts[i] for i in chosen(run)] == [30, 20, 11, 0]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_run_has_one_to_four_steps_in_order(run):
    run = [tuple(("x", level, False) for level in frame) for frame in run]
    steps = chosen(run)
    assert 1 <= len(steps) <= 4 and steps == sorted(set(steps)) and steps[-1] == len(run) - 1
    changes = sum(a != b for a, b in pairwise(run))
    assert len(steps) == min(4, changes + 1)


def test_nothing_is_drawn_behind_the_end(trace):
    for frame in frames(trace):
        assert len(frame) == 17 and frame[-1][0] == STOP


def test_padding_is_a_faint_dot_and_nothing_behind_the_text(trace):
    pad = next(token for token, piece in trace.pieces.items() if piece == "<pad>")
    draft = trace.draft.copy()
    draft[:, :, 3], draft[:, :, 16:] = pad, pad  # no stop token
    padded = dataclasses.replace(trace, draft=draft, accepted=np.ones_like(trace.accepted))
    for frame in frames(padded):
        assert len(frame) == 16 and frame[3] == (FILLER, NOISE, False)
    noise = np.full_like(trace.entropy, 2.0)
    unsure = frames(dataclasses.replace(padded, entropy=noise, accepted=~padded.accepted))[0]
    assert unsure == ((NOISE_CELL, NOISE, False),) * 64
    draft[:] = pad
    assert set(frames(padded)) == {()} and draw(padded).count("<g transform") == 2


@given(st.lists(st.text(st.characters() | st.sampled_from("\n日🙂\u0301\u093f\u200d")), min_size=1), st.integers(2, 30))
@settings(max_examples=300, deadline=None)
def test_no_glyph_overlaps_another(texts, across):
    placed = glyphs(tuple((drawable(text), 0, False) for text in texts), across)
    taken = [(glyph.row, column) for glyph in placed for column in range(glyph.column, glyph.column + glyph.width)]
    assert len(taken) == len(set(taken)) and max(column for _, column in taken) < across
    assert taken == sorted(taken)  # in reading order
    assert not [c for glyph in placed for c in glyph.text if unicodedata.category(c).startswith("C")]
    assert all(glyph.width >= columns(glyph.text[0]) for glyph in placed)


def test_marks_stay_with_their_letters():
    placed = glyphs((("e\u0301", 0, False), ("\u0301", 0, False), ("न\u093f", 0, False), ("日x", 0, False)), 20)
    assert [(g.text, g.column, g.width) for g in placed] == [
        ("e\u0301\u0301", 0, 1), ("न\u093f", 1, 2), ("日", 3, 2), ("x", 5, 1)]  # fmt: skip
    assert [g.text for g in glyphs((("\u0301", 0, False), ("\n\u0301", 0, False)), 9)] == ["◌\u0301", "↵", "◌\u0301"]


def test_rows_break_between_tokens():
    words = [
        ("one", 0, False),
        (" two", 0, False),
        (" three", 0, False),
        (" longerthanarow", 0, False),
        ("\n", 0, False),
    ]
    rows: dict[int, str] = {}
    for glyph in glyphs(tuple(words), 9):
        rows[glyph.row] = rows.get(glyph.row, "") + glyph.text
    assert list(rows.values()) == ["one two", "three lon", "gerthanar", "ow↵"]


def test_a_grid_is_as_large_as_fits():
    short, long = [(("ab", 0, False),)], [(("word ", 0, False),) * 256]
    assert grid(short, 400).font > grid(long, 400).font and grid(short, 400).rows == 1
    assert grid(long, 400).width <= 400 and grid([(("a" * 80, 0, False),)], 400).rows <= ROWS
    four = grid(short, 400, across=4)
    assert (four.columns, four.pitch) == (4, MAX_PITCH) and grid(short, 400, across=200).pitch == 2


def test_what_a_picture_says_of_a_run(trace):
    assert headline(trace, 99) == PROMPT and headline(trace, 8) == "sudoku …"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi\n\x1b[2J there"}]
    assert headline(dataclasses.replace(trace, prompt=messages), 99) == "hi ␛[2J there"
    assert headline(dataclasses.replace(trace, prompt=[2, 5]), 99) == "token ids 2 5"
    assert origin(trace, 99) == "embedded · seed 1"
    for name, shown in (("some/model", "some/model"), ("/my/models/some", "some"), ("./x/some", "some")):
        assert origin(dataclasses.replace(trace, model_id=name, seed=None), 99) == f"{shown} · own noise"
    assert origin(dataclasses.replace(trace, model_id="some/long-model"), 20) == "long-model · seed 1"
    assert origin(dataclasses.replace(trace, model_id="some/long-model"), 15) == "long-… · seed 1"


# ---- SVG


def texts(root: ElementTree.Element) -> list[tuple[str, str]]:
    """Class and text of every text element of a panel."""
    return [(text.get("class"), text.text) for text in root.iterfind(f".//{SVG}g/{SVG}g/{SVG}text")]


def test_the_svg_is_self_contained(trace):
    svg = draw(trace)
    assert set(re.findall(r"https?://[^\"' ]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|image|use|foreignObject|a)\b|href|url\(|@import|\bon\w+=", svg)
    assert "prefers-color-scheme:dark" in svg and LIGHT[3] in svg and DARK[3] in svg and "monospace" in svg
    root = ElementTree.fromstring(svg)
    assert root.get("width") == "880" and 150 < float(root.get("height")) < 600 and len(svg) < 10_000
    assert root.find(f"{SVG}title").text == PROMPT and root.find(f"{SVG}desc").text.endswith(trace.text + STOP)


def test_the_svg_shows_the_tokens_by_state(trace):
    shown, groups = frames(trace), ElementTree.fromstring(draw(trace)).findall(f"{SVG}g")
    for step, group in zip(chosen(shown), groups, strict=True):
        panel = ElementTree.Element("svg")
        panel.append(group)
        assert "".join(text for _, text in texts(panel)) == "".join(text for text, _, _ in shown[step])
        for kind, text in texts(panel):
            levels = {level for piece, level, _ in shown[step] if piece in text and piece != STOP}
            assert int(kind[1]) in levels | {2}
        assert group.find(f"{SVG}text").text == f"step {trace.step[step]} of {len(shown)}"


def test_noise_is_noise_and_the_legend_says_so(trace):
    noisy = dataclasses.replace(trace, entropy=np.full_like(trace.entropy, UNCERTAIN[-1]))
    svg = draw(dataclasses.replace(noisy, accepted=np.zeros_like(trace.accepted)))
    assert NOISE_CELL * 64 in "".join(text for kind, text in texts(ElementTree.fromstring(svg)) if kind == "l4")
    legend = "".join(ElementTree.fromstring(svg).findall(f"{SVG}text")[-1].itertext())
    assert legend == "accepted · or not, entropy below 0.1, 0.5, 1.5 nats · ░░░ above · ■ end"


def test_clamped_tokens_are_marked():
    svg = draw(recorded(eos=True, canvas=CanvasPlan(GIVEN)))
    last = ElementTree.fromstring(svg).findall(f"{SVG}g")[-1]
    panel = ElementTree.Element("svg")
    panel.append(last)
    assert "".join(text for kind, text in texts(panel) if kind == "clamped") == "141231" + STOP
    assert len(last.findall(f".//{SVG}path")) == 7
    assert svg.endswith('class="clamped">clamped</tspan></text>\n</svg>\n')


def test_settled_tokens_are_blue(trace):
    run = settling()
    svg = draw(run)
    step = chosen(frames(run))[-2]
    panel = ElementTree.Element("svg")
    panel.append(ElementTree.fromstring(svg).findall(f"{SVG}g")[-2])
    expected = [position for position in range(16) if not run.computed[step, position]]
    blue = "".join(text for kind, text in texts(panel) if kind == "settled")
    assert expected and blue == "".join(run.pieces[run.draft[step, 0, position]] for position in expected)
    assert svg.endswith('class="settled">settled</tspan></text>\n</svg>\n')
    assert "settled" not in draw(trace)


def test_a_picture_of_a_run_of_several_canvases(two_canvases):
    svg = draw(two_canvases)
    last = int((two_canvases.canvas_index == 0).sum())
    assert f">canvas 1 of 2 · step {last} of {last}<" in svg and "canvas 2" not in svg


def test_one_step_is_one_picture(trace):
    one = {f.name: getattr(trace, f.name)[-1:] for f in dataclasses.fields(trace)
           if isinstance(getattr(trace, f.name), np.ndarray) and f.name != "prompt_ids"}  # fmt: skip
    assert draw(dataclasses.replace(trace, **one)).count("<g transform") == 2  # a panel and its glyphs


def test_hostile_texts_are_text_in_an_svg(trace):
    evil = hostile(trace)
    root = ElementTree.fromstring(draw(evil))
    assert {element.tag for element in root.iter()} <= {
        SVG + name for name in ("svg", "title", "desc", "style", "rect", "text", "tspan", "g", "path")
    }
    said = "".join(root.itertext())
    assert [hex(ord(c)) for c in said if c != "\n" and drawable(c) != c] == []
    assert root.find(f"{SVG}title").text == drawable("".join(HOSTILE))
    steps = "".join(text for _, text in texts(root))
    assert "<script>alert(1)</script></script" in steps and "␛[2J␛]0;x␇␀␡" in steps


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_svg_in_a_browser(trace, tmp_path, tmp_path_factory, scheme):
    """Colours follow the reader's, every glyph is in the middle of its cells, nothing leaves the picture."""
    path = tmp_path / "run.svg"
    path.write_text(draw(with_texts(trace, [*WORLD, *HOSTILE])), encoding="utf-8")
    for browser in start(str(tmp_path_factory.mktemp("profile"))):
        page = Page(browser)
        page.media(scheme)
        page.size(880, 900)
        browser.get(path.as_uri())
        fill = page.run("return getComputedStyle(document.querySelector('.l0')).fill")
        ink = (LIGHT if scheme == "light" else DARK)[3]
        assert fill == f"rgb({', '.join(str(int(ink[i : i + 2], 16)) for i in (1, 3, 5))})"
        off = page.run("""return Math.max(...[...document.querySelectorAll("g g text")].flatMap((text) =>
            [...text.getAttribute("x").split(" ")].map((x, i) => {
              const box = text.getAttribute("x").includes(" ") ? text.getExtentOfChar(i) : text.getBBox();
              return Math.abs(box.x + box.width / 2 - x);
            })))""")
        assert off < 1
        ends = "return [...document.querySelectorAll('text')].map((text) => text.getBoundingClientRect().right)"
        right = max(page.run(ends))
        assert right < 880
        assert page.complaints() == []


def test_the_picture_of_the_readme_is_what_the_script_makes(trace, tmp_path, monkeypatch):
    kept = picture.PATH.read_text(encoding="utf-8")
    monkeypatch.setattr(picture, "PATH", tmp_path / "canvas.svg")
    monkeypatch.setattr(picture, "run", lambda: trace)
    picture.main()
    assert picture.PATH.read_text(encoding="utf-8") == kept
