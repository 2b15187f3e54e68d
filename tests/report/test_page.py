"""The report's page does in a browser what it says."""

import dataclasses
import time

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys

from mlx_dgemma.generate import main
from mlx_dgemma.report.page import write_report
from mlx_dgemma.terminal.watch import UNCERTAIN, drawable
from mlx_dgemma.trace.trace import Trace, load_trace
from tests.report.browser import Page, contrast, short, start
from tests.report.runs import HOSTILE, PROMPT, hostile, recorded, settling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trace() -> Trace:
    return recorded()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from start(str(tmp_path_factory.mktemp("profile")))


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the report of a trace; at the end of the test the console must have been silent."""
    page = Page(browser)

    def open_report(trace: Trace, scheme: str = "light", width: int = 1280, address: str = "#step=1") -> Page:
        write_report(trace, tmp_path / "run.html")
        page.media(scheme)
        page.size(width, 900)
        browser.get("about:blank")  # a change of what stands behind # alone would not load anything
        browser.get((tmp_path / "run.html").as_uri() + address)
        return page

    yield open_report
    assert page.complaints() == []


def shown(trace: Trace, step: int, row: int = 0, ids: str = "draft") -> list[str]:
    """What the tokens of a step should read; what is behind the end of the text is a dot."""
    stops = trace.settings["eos_token_id"]
    tokens = getattr(trace, ids)[step, row].tolist()
    end = next((i for i, token in enumerate(tokens) if ids == "draft" and token in stops), len(tokens))
    pieces = [trace.pieces[token].replace("\n", "↵") for token in tokens]
    return ["·" if i > end or piece == "<pad>" else piece for i, piece in enumerate(pieces)]


def test_it_opens_on_the_last_step(opened, trace):
    page, last = opened(trace, address=""), len(trace.step) - 1
    assert page.step() == last and page.tokens() == shown(trace, last)
    assert PROMPT in page.browser.title and page.one("h1").text == PROMPT
    assert page.one(".final").text == trace.text
    assert int(page.one("#step").get_property("max")) == last
    assert len(page.browser.find_elements("css selector", "#segments span")) == 2
    assert "#" not in page.browser.current_url
    page.one("#play").click()
    assert page.step() == 0


def test_a_link_to_a_step(opened, trace):
    page, last = opened(trace, address="#step=3"), len(trace.step) - 1
    address = lambda: page.browser.current_url.rpartition("#")[2]  # noqa: E731
    assert page.step() == 2 and page.tokens() == shown(trace, 2)
    page.slide(last - 2)
    page.one("body").send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: address() == f"step={last}")
    for typed, step in (("step=2", 1), (f"step={last + 9}", last), ("step=0", 0), ("step=x", 0), ("", 0)):
        page.run("location.hash = arguments[0]", typed)
        page.wait(lambda step=step: page.step() == step)
    page.one("#which option[value='0']").click()
    page.run("location.hash = arguments[0]", f"step={last + 1}")  # of the other canvas
    page.wait(lambda: page.step() == last)
    assert page.one("#which").get_property("value") == "all" and page.tokens() == shown(trace, last)


def test_the_slider_changes_the_canvas(opened, trace):
    page = opened(trace)
    seen = set()
    for step in range(len(trace.step)):
        page.slide(step)
        assert page.tokens() == shown(trace, step)
        assert page.classes("open") == np.flatnonzero(~trace.accepted[step, 0]).tolist()
        figures = page.readout()
        assert figures["accepted"] == f"{trace.accepted_count[step]} of 64"
        assert figures["temperature"] == f"{trace.temperature[step]:.3f}"
        assert figures["canvas"] == f"{trace.canvas_index[step] + 1} of 2"
        seen.add("".join(page.tokens()))
    assert len(seen) > 2  # within a canvas, too
    page.choose("ids", "canvas")
    assert page.tokens() == shown(trace, len(trace.step) - 1, ids="canvas")


def test_play_runs_to_the_end_and_starts_again(opened, trace):
    page = opened(trace)
    page.one("#speed option[value='25']").click()
    page.one("#play").click()
    assert page.one("#play").get_attribute("aria-label") == "Pause"
    page.wait(lambda: page.step() == len(trace.step) - 1)
    page.wait(lambda: page.one("#play").get_attribute("aria-label") == "Play")
    assert page.tokens() == shown(trace, len(trace.step) - 1)
    page.one("#speed option[value='1']").click()
    page.one("#play").click()
    assert page.step() == 0


def test_keys(opened, trace):
    page = opened(trace)
    body, press = page.one("body"), lambda key: ActionChains(page.browser).send_keys(key).perform()
    body.send_keys(Keys.ARROW_RIGHT)
    assert page.step() == 1
    body.send_keys(Keys.ARROW_LEFT)
    assert page.step() == 0
    page.one("#step").send_keys(Keys.ARROW_RIGHT)  # the slider's own key: one step, not two
    assert page.step() == 1 and page.tokens() == shown(trace, 1)
    page.one("#step").send_keys(" ")
    page.wait(lambda: page.step() == 2)
    press(" ")
    assert page.one("#play").get_attribute("aria-label") == "Play"
    page.run("document.querySelector('.token').focus()")
    for _ in range(3):
        press(Keys.ARROW_DOWN)
    press(Keys.ARROW_UP)
    assert "position 2 · " in page.tooltip()
    before = page.step()
    press(Keys.ARROW_LEFT)  # steps, and the focus stays where it is
    assert page.step() == before - 1
    assert f"position 2 · canvas 1 · step {trace.step[before - 1]}" in page.tooltip()
    press(Keys.ESCAPE)
    assert not page.one("#tooltip").is_displayed()


def test_hovering_over_a_token_tells_its_entropy_and_history(opened, trace):
    page = opened(trace)
    step, position = map(int, np.argwhere(~trace.accepted[:, 0])[0])
    page.slide(step)
    assert not page.one("#tooltip").is_displayed()
    ActionChains(page.browser).move_to_element(page.one(f"[data-position='{position}']")).perform()
    text = page.tooltip()
    assert f"position {position} · canvas {trace.canvas_index[step] + 1} · step {trace.step[step]}" in text
    assert f"{short(trace.entropy[step, 0, position])} nats" in text and "not accepted" in text
    assert str(trace.draft[step, 0, position]) in text
    per_canvas = trace.canvas_index == trace.canvas_index[step]
    changes = np.count_nonzero(np.diff(trace.draft[per_canvas, 0, position])) + 1
    assert len(page.browser.find_elements("css selector", "#tooltip li")) == min(changes, 8) + (changes > 8)
    assert len(page.browser.find_elements("css selector", "#tooltip svg circle")) == per_canvas.sum()
    ActionChains(page.browser).move_to_element(page.one("h1")).perform()
    assert not page.one("#tooltip").is_displayed()


def cell(page: Page, trace: Trace, step: int, position: int) -> ActionChains:
    """The pointer over a cell of the heat map."""
    box = page.one("#heat").rect
    across = 44 + (box["width"] - 54) * (step + 0.5) / len(trace.step)
    down = (box["height"] - 4) * (position + 0.5) / 64
    offset = (round(across - box["width"] / 2), round(down - box["height"] / 2))
    return ActionChains(page.browser).move_to_element_with_offset(page.one("#heat"), *offset)


def test_the_heat_map_jumps_and_tells(opened, trace):
    page, last = opened(trace), len(trace.step) - 1
    cell(page, trace, last - 1, 20).perform()
    assert f"position 20 · canvas 2 · step {trace.step[last - 1]}" in page.tooltip() and page.step() == 0
    assert f"{short(trace.entropy[last - 1, 0, 20])} nats" in page.tooltip()
    cell(page, trace, last, 3).click().perform()
    assert page.step() == last and page.tokens() == shown(trace, last)


def test_the_heat_map_switches(opened, trace):
    page = opened(trace)
    entropy, legend = page.heat(), page.one("#legend").text
    page.choose("heat", "acceptance")
    assert page.heat() != entropy and "nats" in legend and "not accepted" in page.one("#legend").text
    assert "Heat map of acceptance" in page.one("#heat").get_attribute("aria-label")
    page.slide(1)
    acceptance = page.heat()
    page.slide(2)
    assert page.heat() != acceptance  # the current step is marked


def test_the_curves_follow_and_jump(opened, trace):
    page, place = opened(trace), "return document.querySelector('#curves circle:last-of-type').getAttribute('cx')"
    before = page.run(place)
    page.slide(len(trace.step) - 1)
    assert float(page.run(place)) > float(before)
    text = page.one("#curves").text
    for name in ("accepted positions", "mean entropy, nats (log)", "temperature", "denoising step", "threshold 0.005"):
        assert name in text
    box = page.one("#curves").rect
    ActionChains(page.browser).move_to_element_with_offset(
        page.one("#curves"), round(50 - box["width"] / 2), 0
    ).click().perform()
    assert page.step() == 0


def test_one_canvas_by_itself(opened, trace):
    page, first = opened(trace), int((trace.canvas_index == 0).sum())
    page.one("#which option[value='1']").click()
    slider = page.one("#step")
    assert (int(slider.get_property("min")), int(slider.get_property("max"))) == (first, len(trace.step) - 1)
    assert page.step() == first and page.tokens() == shown(trace, first)
    page.one("body").send_keys(Keys.ARROW_LEFT)
    assert page.step() == first
    assert len(page.browser.find_elements("css selector", "#segments span")) == 1


def test_dark_mode(opened, trace):
    page = opened(trace)
    background = "return getComputedStyle(document.body).backgroundColor"
    light, heat = page.run(background), page.heat()
    page.media("dark")  # a change while the page is open, too
    page.wait(lambda: page.heat() != heat)
    assert page.run(background) != light
    dark = page.heat()
    assert opened(trace, "dark").heat() == dark
    [colours] = page.colours("body")
    assert contrast(colours[:3], colours[3:6]) > 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_token_is_readable_on_its_colour(opened, trace, scheme):
    entropy = np.linspace(0, 5, trace.entropy.size, dtype=np.float32).reshape(trace.entropy.shape)
    page = opened(dataclasses.replace(trace, entropy=entropy[:, :, ::-1].copy()), scheme)
    ratios = []
    for step in range(len(trace.step)):
        page.slide(step)
        ratios += [contrast(colour[:3], colour[3:]) for colour in page.colours(".token")]
    assert len(ratios) == trace.entropy.size and min(ratios) > 4.5


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(opened, trace, width):
    page = opened(trace, width=width)
    assert page.run("return document.documentElement.scrollWidth") <= width
    page.choose("layout", "grid")
    assert page.run("return document.documentElement.scrollWidth") <= width


def test_what_a_template_fixed_is_marked(opened, tmp_path, capsys):
    given = "1{2}4{2}1{1}2{4}3{1}1"
    arguments = ["--prompt", PROMPT, "--template", given, "--trace", str(tmp_path / "run.npz"), "--quiet"]
    assert main(arguments) == 0 and len(capsys.readouterr().out) == 17
    page = opened(load_trace(tmp_path / "run.npz"))
    assert page.classes("clamped") == [0, 3, 6, 8, 13, 15, *range(16, 64)]  # the cells, the stop token, the padding
    assert "clamped" in page.one("#legend").text


def test_clamped_positions_are_marked(opened, trace):
    clamped = np.zeros_like(trace.accepted)
    clamped[:, :, 5:9] = True
    plain = opened(trace)
    assert not plain.one("#clamped-key").is_displayed() and plain.classes("clamped") == []
    page = opened(dataclasses.replace(trace, clamped=clamped))
    assert page.classes("clamped") == [5, 6, 7, 8] and page.one("#clamped-key").is_displayed()
    assert "clamped" in page.one("#legend").text
    ActionChains(page.browser).move_to_element(page.one("[data-position='6']")).perform()
    assert "clamped" in page.tooltip()


def test_settled_positions_are_marked(opened, trace):
    plain = opened(trace)
    assert not plain.one("#settled-key").is_displayed() and plain.classes("settled") == []
    assert "computed" not in plain.readout() and "computed positions" not in plain.one("#curves").text
    run = settling()
    step = int(np.flatnonzero(run.rows < 64)[-1])
    page = opened(run, address=f"#step={step + 1}")
    at_rest = np.flatnonzero(~run.computed[step] & run.accepted[step, 0])
    assert page.classes("settled") == [position for position in at_rest if position <= 16]  # not what is behind the end
    assert page.readout()["computed"] == f"{run.rows[step]} of 64" and "computed positions" in page.one("#curves").text
    page.choose("heat", "acceptance")
    assert "settled" in page.one("#legend").text
    ActionChains(page.browser).move_to_element(page.one(f"[data-position='{at_rest[0]}']")).perform()
    assert "settled, not computed" in page.tooltip()


def test_samples_can_be_chosen(opened, trace):
    flipped = {n: np.concatenate([getattr(trace, n)] * 2, 1) for n in ("canvas", "entropy", "accepted", "clamped")}
    draft = np.concatenate([trace.draft, trace.draft[:, :, ::-1]], 1)
    two = dataclasses.replace(trace, draft=draft, **flipped)
    page = opened(two)
    assert page.tokens() == shown(two, 0)
    page.one("#sample option[value='1']").click()
    assert page.tokens() == shown(two, 0, row=1) == shown(two, 0)[::-1]
    assert "over 2 samples" in page.one("#curves").text


def test_hostile_text_is_shown_as_it_is(opened, trace):
    evil = hostile(trace)
    page = opened(evil)
    assert page.tokens()[: len(HOSTILE)] == list(map(drawable, HOSTILE))
    assert page.run("return document.querySelector('h1').textContent") == drawable(evil.prompt)
    assert page.run("return document.querySelector('.final').textContent") == drawable(evil.text)
    everything = page.run("return document.documentElement.textContent + document.title")
    assert [hex(ord(c)) for c in everything if c != "\n" and drawable(c) != c] == []
    assert page.browser.find_elements("css selector", "img, #tokens script, .panel script") == []
    ActionChains(page.browser).move_to_element(page.one("[data-position='0']")).perform()
    assert HOSTILE[0] in page.tooltip()


def test_the_colours_are_those_of_every_run(opened, trace):
    """Sure text looks sure, whatever else the run has: the colour of an entropy does not depend on its largest."""
    colours = {}
    for most in (0.02, 9.0):
        entropy, marks = np.full_like(trace.entropy, most), (0.0137, 0.05, *UNCERTAIN)
        entropy[0, 0, : len(marks)] = marks
        page = opened(dataclasses.replace(trace, entropy=entropy, accepted=trace.accepted | True))
        colours[most] = [colour[3:] for colour in page.colours(".token")[: len(marks)]]
        ticks = page.run("return [...document.querySelectorAll('.ramp span')].map((tick) => tick.textContent)")
        assert ticks == ["0", *map(str, UNCERTAIN), "≥ 5 nats"]
    assert colours[0.02] == colours[9.0]
    names = "return [0, 1, 2, 3].map((i) => getComputedStyle(document.documentElement).getPropertyValue(`--heat-${i}`))"
    palette = [[int(colour[n : n + 2], 16) for n in (1, 3, 5)] for colour in page.run(names)]
    assert colours[9.0][2:] == palette[1:]
    assert all(abs(a - b) < 14 for a, b in zip(colours[9.0][0], palette[0], strict=True))


def test_what_is_behind_the_end_is_a_muted_dot(opened):
    trace = recorded(eos=True)
    page = opened(trace)
    for step in range(len(trace.step)):
        page.slide(step)
        assert page.tokens() == shown(trace, step) and page.tokens()[17:] == ["·"] * 47
        assert page.classes("behind") == list(range(17, 64)) and not set(page.classes("open")) & set(range(17, 64))
    ActionChains(page.browser).move_to_element(page.one("[data-position='20']")).perform()
    assert "<pad>" in page.tooltip() and "behind the end" in page.tooltip()
    page.choose("ids", "canvas")
    assert page.tokens() == shown(trace, len(trace.step) - 1, ids="canvas")


def test_without_a_tokenizer_ids_are_shown(opened, trace):
    page = opened(dataclasses.replace(trace, pieces={}))
    assert "".join(page.tokens()).split() == [str(token) for token in trace.draft[0, 0]]


def test_entropies_that_are_no_numbers(opened, trace):
    entropy, mean = trace.entropy.copy(), trace.mean_entropy.copy()
    entropy[0, 0, 3], entropy[0, 0, 4], mean[0] = np.nan, np.inf, np.nan
    page = opened(dataclasses.replace(trace, entropy=entropy, mean_entropy=mean))
    assert page.readout()["mean entropy"].startswith("not a number")
    page.slide(1)
    assert page.tokens() == shown(trace, 1)


def long_run(trace: Trace, canvases: int = 10, steps: int = 48, positions: int = 256) -> Trace:
    """A made-up run of the size of the published checkpoint's."""
    total, random = canvases * steps, np.random.default_rng(0)
    shape, step = (total, 1, positions), np.tile(np.arange(1, steps + 1, dtype=np.int32), canvases)
    ids = random.choice(list(trace.pieces), shape).astype(np.int32)
    entropy = random.exponential(1, shape).astype(np.float32)
    return dataclasses.replace(
        trace, canvas=ids, draft=ids, entropy=entropy, accepted=entropy < 1, clamped=entropy < 0, step=step,
        canvas_index=np.repeat(np.arange(canvases, dtype=np.int32), steps), remaining=steps + 1 - step,
        temperature=step / 50, accepted_count=(entropy < 1).sum((1, 2)), mean_entropy=entropy.mean((1, 2)),
        finished=step == steps, seconds=step / 10, elapsed=np.cumsum(step / 10),
    )  # fmt: skip


def test_a_long_run_stays_usable(opened, trace):
    long = long_run(trace)
    began = time.perf_counter()
    page = opened(long)
    assert page.tokens() == shown(long, 0)
    assert time.perf_counter() - began < 10
    assert page.run("return document.getElementsByTagName('*').length") < 1500
    moved = "const s = document.getElementById('step'), began = performance.now();"
    moved += (
        "for (let i = 1; i <= 40; i++) { s.value = 12 * i - 1; s.dispatchEvent(new Event('input')); s.offsetHeight }"
    )
    assert page.run(moved + "return (performance.now() - began) / 40") < 100  # ms a step, layout included
    assert page.tokens() == shown(long, 479)
