"""The page does in a browser what it says: a server's answers, and made-up ones for what no small model writes."""

import json
import re
import time

import pytest
from selenium.webdriver import Keys

from mlx_dgemma.report.texts import SCALE
from mlx_dgemma.server import page as files
from mlx_dgemma.web import SHARED, STYLE, asset
from tests.report.browser import Page, contrast, start

pytestmark = pytest.mark.slow
OWN = "mlx_dgemma.server"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from start(str(tmp_path_factory.mktemp("profile")))


class Chat(Page):
    """The page of a server."""

    def ask(self, text: str) -> None:
        self.one("#prompt").send_keys(text + Keys.ENTER)

    def answers(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('.answer .markdown')].map((own) => own.innerText)")

    def idle(self) -> None:
        self.wait(lambda: self.one("#stop").get_property("hidden"))

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def names(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#conversations .name')].map((own) => own.textContent)")

    def is_shown(self, selector: str) -> bool:
        return not self.one(selector).get_property("hidden")

    def fakes(self, *chunks, end="data: [DONE]\n\n", pause=0) -> None:
        """The next answers are these chunks, whatever is asked; `sent` on the page are their requests."""
        stream = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + [end]
        self.run(
            """const [parts, pause] = arguments, real = window.fetch; window.sent = [];
            window.fetch = async (path, options) => {
              if (!path.endsWith("completions")) return real(path, options);
              window.sent.push(JSON.parse(options.body));
              const encoder = new TextEncoder();
              return new Response(new ReadableStream({ async start(out) {
                options.signal.addEventListener("abort", () => out.error(new DOMException("", "AbortError")));
                for (const part of parts) {
                  if (pause) await new Promise((then) => setTimeout(then, pause));
                  for (const byte of encoder.encode(part)) out.enqueue(new Uint8Array([byte]));
                }
                out.close();
              } }));
            };""",
            stream, pause,
        )  # fmt: skip


def chunk(content=None, reason=None, **delta):
    own = delta if content is None else {"content": content, **delta}
    return {"choices": [{"index": 0, "delta": own, "finish_reason": reason}]}


def draft(step, tokens, canvas=0, end=99):
    about = {"canvas": canvas, "step": step, "max_steps": 48, "accepted": 1, "mean_entropy": 0.5, "temperature": 0.7}
    return chunk("") | {"diffusion": about | {"text": "", "end": end, "tokens": tokens}}


@pytest.fixture
def opened(browser, server):
    """Opens the page with an empty storage; at the end of the test the console must have been silent."""
    page = Chat(browser)

    def open_page(scheme="light", width=1280, url=server.url) -> Chat:
        page.media(scheme)
        page.size(width, 900)
        browser.get(url + "/")
        page.run("localStorage.clear(); sessionStorage.clear()")
        browser.get(url + "/")
        page.wait(lambda: page.text("#model") or not page.is_shown("#model") or width < 800 or page.is_shown("#note"))
        return page

    yield open_page
    assert page.complaints() == []


def test_a_question_is_answered_and_its_steps_stay(opened):
    page = opened()
    assert page.text("#model") == "embedded, 4,096 tokens"
    page.ask("roman 1994")
    page.wait(lambda: page.answers() == ["MCMXCIV"])
    page.idle()
    assert page.text("#title") == "roman 1994" and "tokens" in page.text(".answer .foot")
    slider = page.one(".canvas input")
    last = int(slider.get_property("max"))
    assert last >= 1 and slider.get_property("value") == str(last)
    assert "".join(page.tokens()).startswith("MCMXCIV") and page.text(".canvas summary").startswith("Steps: ")
    slider.send_keys(Keys.HOME)
    assert "step 1 ·" in page.text(".readout")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert "step 2 ·" in page.text(".readout")
    page.ask("upper abc")
    page.wait(lambda: page.answers() == ["MCMXCIV", "ABC"])
    page.idle()
    assert page.run("return [...document.querySelectorAll('.canvas')].map((own) => own.open)") == [False, True]
    assert page.run("return document.querySelectorAll('.canvas')[0].querySelector('input').max") == str(last)


def test_an_answer_is_stopped_by_escape_and_by_its_button(opened, server):
    page = opened()
    page.fakes(chunk(role="assistant", content=""), chunk("the beginning"), *[chunk("")] * 50, pause=100)
    for stop in (lambda: page.one("body").send_keys(Keys.ESCAPE), lambda: page.one("#stop").click()):
        page.ask("go on")
        page.wait(lambda: page.answers()[-1:] == ["the beginning"])
        assert page.text("#status") == "Writing …" and not page.is_shown("#send")
        stop()
        page.idle()
        assert page.answers()[-1] == "the beginning" and "stopped" in page.text(".answer:last-of-type .foot")
    browser = page.browser
    browser.refresh()
    page.wait(lambda: page.answers() == ["the beginning"] * 2)
    server.idle()


HOSTILE = """# Title
<img src=x onerror="document.title='hacked'"> & <b>b</b>

[bad](javascript:alert(1)) [good](https://example.org/a) **bold** *it* `a<b` ~~no~~ \\*plain\\* snake_case_name

- one
  - two
- three

3. c
4. d

> quoted

```python
print("<script>")
```

| a | b |
|---|---|
| 1 | `2` |
"""


def test_markdown_is_elements_and_never_markup(opened):
    page = opened()
    half = len(HOSTILE) // 2
    page.fakes(chunk(HOSTILE[:half], role="assistant"), chunk(HOSTILE[half:]), chunk(reason="stop"))
    page.ask("write")
    page.idle()
    html = page.run("return document.querySelector('.markdown').innerHTML")
    assert "<img" not in html and "<b>" not in html and "&lt;img" in html and "<script" not in html
    assert page.run("return [...document.querySelectorAll('.markdown a')].map((a) => [a.href, a.rel])") == [
        ["https://example.org/a", "noopener noreferrer"]
    ]
    assert "[bad](javascript:alert(1))" in page.answers()[0] and "*plain*" in page.answers()[0]
    for part in (
        "<h3>Title</h3>", "<strong>bold</strong>", "<em>it</em>", "<code>a&lt;b</code>", "<s>no</s>", "snake_case_name",
        "<ul><li>one<ul><li>two</li></ul></li><li>three</li></ul>", '<ol start="3"><li>c</li><li>d</li></ol>',
        "<blockquote><p>quoted</p></blockquote>", "<tr><th>a</th><th>b</th></tr>", "<td><code>2</code></td></tr>",
        "print(\"&lt;script&gt;\")",
    ):  # fmt: skip
        assert part in html, part


def test_markdown_of_any_text_ends(opened):
    page = opened()
    script = """return (async () => {
      const { markdown } = await import("/assets/markdown.js"), began = performance.now();
      document.createElement("div").append(...markdown(TEXT));
      return performance.now() - began;
    })()"""
    for text in (
        "*" * 3000, "[" * 3000, "`" * 3001, "> " * 2000, "- " * 1500, "_a" * 2000, "|" * 999 + "\n|-|\n", "```\n" * 999,
        "**a" * 1000, "[a](" * 1000, "\n" * 5000, "1. a\n" * 2000, "\\" * 999, "#" * 999, " " * 9000 + "- x",
    ):  # fmt: skip
        assert page.run(script.replace("TEXT", json.dumps(text))) < 2000, text[:9]


def test_thoughts_and_calls(opened):
    page = opened()
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}
    page.fakes(
        chunk(role="assistant", content=""), chunk(reasoning_content="Let me <b>see</b>."), chunk(tool_calls=[call]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": ' "Oslo"}'}}]), chunk(reason="tool_calls"),
    )  # fmt: skip
    page.one("#settings").click()
    page.one("[name=tools]").send_keys("{")
    page.one("#done").click()
    assert page.text("#panel-note") == "Tools must be a JSON list."
    page.run("document.querySelector('[name=tools]').value = arguments[0]", '[{"type": "function"}]')
    page.one("[name=thinking]").click()
    page.one("[name=seed]").send_keys("7")
    page.one("[name=stop]").send_keys("END")
    page.one("[name=system]").send_keys("Be kind.")
    page.one("#done").click()
    page.ask("weather?")
    page.idle()
    assert not page.run("return document.querySelector('.thought').open")
    assert page.run("return document.querySelector('.thought .said').textContent") == "Let me <b>see</b>."
    assert page.text(".call").replace("\u00a0", " ") == 'weather\n{\n  "city": "Oslo"\n}'
    page.fakes(chunk("It rains.", role="assistant"), chunk(reason="stop"))
    page.one(".results textarea").send_keys("rain")
    page.one(".results button").click()
    page.wait(lambda: page.answers()[-1] == "It rains.")
    page.idle()
    [sent] = page.run("return window.sent")
    assert [m["role"] for m in sent["messages"]] == ["system", "user", "assistant", "tool"]
    assert sent["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"city": "Oslo"}'
    assert sent["messages"][2]["reasoning_content"] and sent["messages"][3]["tool_call_id"] == "call_1"
    assert (sent["seed"], sent["stop"], sent["reasoning_effort"]) == (7, ["END"], "medium")
    assert sent["tools"] == [{"type": "function"}] and sent["diffusion"] == {"drafts": "tokens"}


def test_nothing_jumps_while_a_canvas_is_refined(opened):
    """What stands above keeps its place, and the canvas never gets lower."""
    page = opened()
    long = [[f"word{i} ", 2.0, 0] for i in range(200)]
    page.fakes(
        chunk("Committed text.\n\n", role="assistant"), draft(1, long), draft(2, [["a", 0.1, 1]] * 200, end=1),
        draft(3, long), chunk("More."), draft(1, [["b", 0.1, 2]] * 200, canvas=1, end=0), chunk(reason="stop"),
        pause=120,
    )  # fmt: skip
    page.ask("write")
    seen = []
    until = time.monotonic() + 3
    script = """const [user, first, box] = ['.user', '.markdown p', '.tokens'].map((own) => document.querySelector(own))
      .map((own) => own && own.getBoundingClientRect());
    return [user.top + scrollY, first && first.top + scrollY, box && box.height]"""
    while time.monotonic() < until and page.is_shown("#stop"):
        seen.append(page.run(script))
    assert len(seen) > 5 and len({own[0] for own in seen}) == 1 and len({own[1] for own in seen if own[1]}) == 1
    heights = [own[2] for own in seen if own[2]]
    assert heights == sorted(heights) and heights[-1] > 100
    assert page.count(".token.clamped") > 0 and page.count(".token.open") == 0


def test_conversations_are_kept_renamed_deleted_exported_and_imported(opened, tmp_path):
    page = opened()
    page.fakes(chunk("Hello.", role="assistant"), chunk(reason="stop"))
    for text in ("first", "second"):
        page.one("#new").click()
        page.ask(text)
        page.idle()
    assert page.names() == ["second", "first"]
    page.run("document.querySelectorAll('#conversations .small')[0].click()")
    page.run("document.getElementById('answer').value = 'renamed'")
    page.one("#answer").send_keys(Keys.ENTER)
    page.wait(lambda: page.names() == ["renamed", "first"])
    exported = page.run("return (await import('/assets/store.js')).exported()".join(["return (async () => {", "})()"]))
    assert [own["title"] for own in json.loads(exported)["conversations"]] == ["renamed", "first"]
    page.run("document.querySelectorAll('#conversations .small')[1].click()")
    page.one("#ask button").click()  # cancelled
    assert page.names() == ["renamed", "first"]
    page.run("document.querySelectorAll('#conversations .small')[1].click()")
    page.one("#yes").click()
    page.wait(lambda: page.names() == ["first"])
    page.browser.refresh()
    page.wait(lambda: page.names() == ["first"])
    (tmp_path / "c.json").write_text(exported)
    for content, told in (
        (None, "1 conversation was added."), ("{", "not JSON"), ('{"conversations": []}', "that this page wrote"),
        (exported.replace('"user"', '"system"'), "that this page wrote"), ("null", "that this page wrote"),
    ):  # fmt: skip
        (tmp_path / "d.json").write_text(exported if content is None else content)
        page.run("document.getElementById('file').hidden = false")
        page.one("#file").send_keys(str(tmp_path / "d.json"))
        page.wait(lambda told=told: told in page.text("#note"))
    assert page.names() == ["renamed", "first"]


def test_the_keyboard_is_enough(opened):
    page = opened()
    page.fakes(chunk("Hello.", role="assistant"), chunk(reason="stop"))
    prompt = page.one("#prompt")
    prompt.send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert prompt.get_property("value") == "one\ntwo" and page.answers() == []
    prompt.send_keys(Keys.ENTER)
    page.idle()
    focused = set()
    for _ in range(16):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        focused.add(page.run("const own = document.activeElement; return own.id || own.textContent"))
    assert {"new", "one", "export", "import", "settings", "prompt", "send", "Edit", "Retry"} <= focused
    page.one("#settings").send_keys(Keys.ENTER)
    page.wait(lambda: page.run("return document.getElementById('panel').open"))
    page.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait(lambda: not page.run("return document.getElementById('panel').open"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_needs_no_scrolling_aside(opened, scheme):
    page = opened(scheme, 390)
    table = "| " + " | ".join(["column"] * 20) + " |\n|" + "---|" * 20 + "\n"
    page.fakes(
        chunk("x" * 400 + "\n\n```\n" + "y" * 300 + "\n```\n\n" + table, role="assistant"),
        draft(1, [["z" * 90, 5.0, 0], ["<turn|>", 0.2, 2], ["a\n", 0.0, 1]] * 9), chunk(reason="stop"),
    )  # fmt: skip
    page.ask("w" * 300)
    page.idle()
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    pairs = page.colours(".answer .markdown p, .foot, .readout, .token, .user .said, #send")
    paper = page.colours("body")[0][3:6]
    for ink in pairs:
        background = ink[3:6] if len(ink) == 6 else paper  # one that is transparent has an alpha
        assert contrast(ink[:3], background) >= 4.5, ink
    assert (sum(paper) < 200) == (scheme == "dark")
    page.one("#menu").click()
    page.wait(lambda: page.one("#new").is_displayed())
    page.one("body").send_keys(Keys.ESCAPE)
    page.wait(lambda: not page.one("#new").is_displayed())


def test_what_goes_wrong_is_one_line_and_the_text_so_far_stays(opened):
    page = opened()
    page.fakes(chunk("the beginning", role="assistant"), end="")
    page.ask("go")
    page.wait(lambda: page.text("#note") == "The connection ended before the answer did.")
    assert page.answers() == ["the beginning"]
    page.fakes(chunk("another", role="assistant"), {"error": {"message": "out of memory"}})
    page.run("document.querySelector('.answer .actions button').click()")
    page.wait(lambda: page.text("#note") == "out of memory" and page.answers() == ["another"])
    page.run("""window.fetch = async () => new Response('{"error": {"message": "too many wait"}}',
        { status: 503, headers: { "Retry-After": "2" } })""")
    page.ask("again")
    page.wait(lambda: page.text("#note") == "too many wait (again in 2 s)" and page.answers() == ["another"])
    page.run("window.fetch = async () => { throw new TypeError('no') }")
    page.run("document.querySelector('.user .actions button').click()")
    page.ask("")
    page.wait(lambda: "cannot be reached" in page.text("#note"))
    page.run("Storage.prototype.setItem = () => { throw new Error('quota') }")
    page.fakes(chunk("fine", role="assistant"), chunk(reason="stop"))
    page.ask("more")
    page.wait(lambda: "no room to keep this" in page.text("#note"))
    page.idle()


def test_a_server_with_a_key_asks_for_it(opened, start):
    page = opened(url=start(keys=("secret",)).url)
    page.wait(lambda: page.run("return document.getElementById('ask').open"))
    assert page.one("#answer").get_property("type") == "password"
    page.one("#answer").send_keys("secret" + Keys.ENTER)
    page.wait(lambda: page.text("#model") == "embedded, 4,096 tokens")
    page.ask("roman 3")
    page.wait(lambda: page.answers() == ["III"])
    page.idle()
    assert "secret" not in page.run("return JSON.stringify(localStorage)")
    assert all("401" in words for words in page.complaints())  # the browser's own word on the first try


def test_its_files_are_served_with_a_strict_policy(server):
    index = server.http.get("/")
    assert index.status_code == 200 and index.headers["content-type"].startswith("text/html")
    names = re.findall(r'"/assets/([\w.]+)"', index.text)
    imported = [re.findall(r'from "\./([\w.]+)"', server.http.get(f"/assets/{name}").text) for name in files.OWN]
    for name in {*names, *(own for found in imported for own in found), *SHARED, STYLE}:
        answer = server.http.get(f"/assets/{name}")
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff", name
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["referrer-policy"] == "no-referrer"
        again = server.http.get(f"/assets/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/assets/page.html", "/assets/..%2fpage.py", "/assets/", "/assets/../page.py", "/assets/x"):
        assert server.http.get(path).status_code == 404, path


def test_its_parts_know_each_other():
    """Every id that a script asks for is there; nothing is put in as markup; the palette's marks are the report's."""
    html = asset("page.html", OWN)
    ids, scripts = (
        set(re.findall(r'\bid="([\w-]+)"', html)),
        {name: asset(name, OWN) for name in files.OWN if name[-3:] == ".js"},
    )
    for name, script in scripts.items():
        asked = set(re.findall(r'(?:byId|getElementById)\("([\w-]+)"\)', script))
        asked |= set(re.findall(r'"([\w-]+)"', (re.search(r"\[([^\]]*)\]\.map\(byId\)", script) or [0, ""])[1]))
        assert asked <= ids, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", script), name
    assert not re.search(r"\son\w+=|\sstyle=|<script>|https?:", html)
    assert json.loads(re.search(r"SCALE = (\[.*?\])", scripts["canvas.js"])[1]) == list(SCALE)
