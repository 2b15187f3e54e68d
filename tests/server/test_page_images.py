"""Images on the page, in a browser: picked, dropped, pasted, sent, kept, and what is refused."""

import base64
import io
import json

import pytest
from PIL import Image

from tests.report.browser import contrast
from tests.seeing import picture
from tests.server.test_page import browser, chunk, opened  # noqa: F401

pytestmark = pytest.mark.slow
TOKENS = 45, 64, 63  # of `picture`, by number
BRING = """const [way, files, text] = arguments, data = new DataTransfer();
for (const [name, type, content] of files) {
  data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type }));
}
if (text) data.setData("text/plain", text);
const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
const event = way === "paste" ? new ClipboardEvent("paste", options) : new DragEvent(way, options);
return document.getElementById("prompt").dispatchEvent(event);"""


def content(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def bring(page, way, *files, text=""):
    """Drops or pastes files, (name, type, bytes) each; whether the page leaves it to the browser."""
    return page.run(BRING, way, [[name, kind, base64.b64encode(own).decode()] for name, kind, own in files], text)


def png(number):
    return f"{number}.png", "image/png", content(picture(number))


def waiting(page):
    return page.run("return [...document.querySelectorAll('#tray img')].map((own) => own.naturalWidth)")


@pytest.fixture
def page(opened, seeing):  # noqa: F811
    page = opened(url=seeing.url)
    page.wait(lambda: page.is_shown("#attach"))
    return page


def pick(page, *paths):
    page.run("document.getElementById('picked').hidden = false")
    page.one("#picked").send_keys("\n".join(map(str, paths)))
    page.run("document.getElementById('picked').hidden = true")


def test_images_are_picked_dropped_pasted_removed_and_sent(page, says, tmp_path):
    says("Noise.<turn|>")
    for number in (0, 1):
        (tmp_path / f"{number}.png").write_bytes(png(number)[2])
    pick(page, tmp_path / "0.png", tmp_path / "1.png")
    page.wait(lambda: waiting(page) == [300, 60])
    bring(page, "dragover", png(2))
    assert page.run("return document.body.classList.contains('drop')")
    assert bring(page, "drop", png(2)) is False  # the browser is not left to open it
    page.wait(lambda: waiting(page) == [300, 60, 37])
    assert not page.run("return document.body.classList.contains('drop')")
    bring(page, "drop", png(2))  # once is enough
    assert bring(page, "paste", png(4)) is False
    page.wait(lambda: waiting(page) == [300, 60, 37, 60])
    page.run("document.querySelector('#tray [aria-label=\"Remove image 1\"]').click()")
    page.run("document.querySelector('#tray [aria-label=\"Remove image 3\"]').click()")
    assert waiting(page) == [60, 37] and page.run("return document.activeElement.id") == "prompt"
    page.ask("What are they?")
    page.idle()
    assert not page.is_shown("#tray") and page.count(".user .thumbnail") == 2
    page.wait(lambda: page.run("return document.querySelector('.user .thumbnail').naturalWidth") == 60)
    foot = page.text(".answer .foot")
    with_images = int(foot.split(" +")[0].split()[-1])
    page.one("#new").click()
    page.ask("What are they?")
    page.idle()
    without = int(page.text(".answer .foot").split(" +")[0].split()[-1])
    assert with_images - without == TOKENS[1] + TOKENS[2] + 4


def test_a_turn_may_be_an_image_alone(page):
    page.fakes(chunk("A cat.", role="assistant"), chunk(reason="stop"))
    bring(page, "drop", png(1))
    page.wait(lambda: waiting(page) == [60])
    page.ask("")
    page.idle()
    [sent] = page.run("return window.sent")
    [image] = sent["messages"][0]["content"]
    assert base64.b64decode(image["image_url"]["url"].partition(",")[2]) == png(1)[2]  # unchanged, as it is small
    assert page.text("#title") == "Image" and page.count(".user .said") == 0


def test_a_large_image_is_scaled_before_it_is_sent(page):
    page.fakes(chunk("Noise.", role="assistant"), chunk(reason="stop"))
    noise = Image.effect_noise((3000, 2000), 90).convert("RGB")
    noise.paste((255, 0, 0), (0, 0, 3000, 1000))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    photo = content(noise, "JPEG", quality=95, exif=exif)
    assert len(photo) > 1 << 20
    bring(page, "drop", ("photo.jpg", "image/jpeg", photo), ("a.bmp", "image/bmp", content(picture(1), "BMP")))
    page.wait(lambda: len(waiting(page)) == 2)
    page.ask("look")
    page.idle()
    parts = page.run("return window.sent[0].messages[0].content")
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    urls = [part["image_url"]["url"] for part in parts[:2]]
    first, second = (Image.open(io.BytesIO(base64.b64decode(own.partition(",")[2]))) for own in urls)
    assert first.format == second.format == "JPEG" and second.size == (60, 60)
    assert first.height > first.width and 0.99 < first.width * first.height / (1120 * 48 * 48) < 1.01
    red = [first.getpixel((int(first.width * at), first.height // 2)) for at in (0.75, 0.25)]
    assert red[0][0] > 200 > 60 > red[0][1] and red[1][1] > 60  # turned upright: what was above is at the right


def test_images_stay_with_their_conversation(page):
    page.fakes(chunk("Seen.", role="assistant"), chunk(reason="stop"))
    bring(page, "drop", png(1), png(2))
    page.wait(lambda: len(waiting(page)) == 2)
    page.ask("look")
    page.idle()
    page.one("#new").click()
    page.ask("other")
    page.idle()
    page.browser.refresh()
    page.run("document.querySelectorAll('#conversations .name')[1].click()")
    page.wait(
        lambda: page.run("return [...document.querySelectorAll('.user img')].map((i) => i.naturalWidth)") == [60, 37]
    )
    page.fakes(chunk("Still seen.", role="assistant"), chunk(reason="stop"))
    page.ask("again")
    page.idle()
    [sent] = page.run("return window.sent")
    assert [part["type"] for part in sent["messages"][0]["content"]] == ["image_url", "image_url", "text"]
    assert "base64" not in page.run("return JSON.stringify(localStorage)")  # which has room for few
    exported = json.loads(page.run("return import('/assets/store.js').then((own) => own.exported())"))
    assert [len(m.get("images", [])) for m in exported["conversations"][1]["messages"]] == [2, 0, 0, 0]
    exported["conversations"][1]["id"] = "another"
    store = "return import('/assets/store.js').then(async (own) => { %s })"
    text = json.dumps(exported)
    assert page.run(store % "try { return own.take(arguments[0]) } catch (e) { return e.message }", text) == 1
    bad = text.replace("data:image/png", "https://example.com/a")
    assert "that this page wrote" in page.run(
        store % "try { return own.take(arguments[0]) } catch (e) { return e.message }", bad
    )
    keys = """return new Promise((then) => { const asked = indexedDB.open("dgemma", 1); asked.onsuccess = () => {
      const keys = asked.result.transaction("images").objectStore("images").getAllKeys();
      keys.onsuccess = () => then(keys.result.length) } })"""
    page.wait(lambda: page.run(keys) == 4)
    page.run("document.querySelectorAll('#conversations .small')[3].click()")  # deletes the second
    page.one("#yes").click()
    page.wait(lambda: page.run(keys) == 2)
    page.run("localStorage.clear()")
    page.browser.refresh()  # images of no conversation go
    page.wait(lambda: page.run(keys) == 0)


def test_a_question_that_is_edited_has_its_images_again(page):
    page.fakes(chunk("Seen.", role="assistant"), chunk(reason="stop"))
    bring(page, "drop", png(1))
    page.wait(lambda: len(waiting(page)) == 1)
    page.ask("look")
    page.idle()
    page.run("document.querySelector('.user .actions button').click()")
    page.wait(lambda: waiting(page) == [60])
    assert page.one("#prompt").get_property("value") == "look"
    page.run("document.querySelector('#tray button').click()")
    page.ask("")
    page.idle()
    sent = page.run("return window.sent")
    assert isinstance(sent[1]["messages"][0]["content"], str)


def test_what_is_no_image_is_refused_in_a_line(page, opened, talking):  # noqa: F811
    for file, told in (
        (
            ("a.txt", "text/plain", b"words"),
            "a.txt is no image that this browser reads; give a PNG, JPEG, WebP or GIF.",
        ),
        (("a.png", "image/png", b"words"), "a.png is no image that this browser reads; give a PNG, JPEG, WebP or GIF."),
        (("b.png", "image/png", b""), "b.png is no image that this browser reads; give a PNG, JPEG, WebP or GIF."),
    ):
        bring(page, "drop", file)
        page.wait(lambda told=told: page.text("#note") == told)
    page.run("Object.defineProperty(File.prototype, 'size', { get: () => 2 ** 30 })")
    bring(page, "drop", png(1))
    page.wait(lambda: page.text("#note") == "1.png has more than 64 MB; save it smaller.")
    assert waiting(page) == []
    assert bring(page, "paste", png(1), text="a table") is True  # the text is what was meant
    blind = opened(url=talking.url)
    blind.wait(lambda: "random" in blind.text("#model"))
    assert not blind.is_shown("#attach")
    bring(blind, "drop", png(1))
    blind.wait(lambda: blind.text("#note") == "This model takes no images.")


def test_an_image_that_the_server_refuses_is_a_line(page):
    wide = content(Image.new("RGB", (2, 2)), "GIF")[:-1]  # cut off: browsers show it
    page.run("document.getElementById('settings').click()")
    page.run("document.querySelector('[name=image_tokens]').value = '70'")
    page.one("#done").click()
    bring(page, "drop", *[(f"{n}.png", "image/png", content(Image.new("RGB", (n + 1, 1)))) for n in range(17)])
    page.wait(lambda: len(waiting(page)) == 17)
    page.ask("look")
    page.wait(lambda: page.text("#note") == "the messages have 17 images; give at most 16")
    page.idle()
    assert wide and page.complaints() and not page.answers()  # the browser's own word on a 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_thumbnails_fit_a_narrow_window(opened, seeing, scheme, tmp_path):  # noqa: F811
    page = opened(scheme, 390, url=seeing.url)
    page.wait(lambda: page.is_shown("#attach"))
    page.fakes(chunk("Seen.", role="assistant"), chunk(reason="stop"))
    wide = "wide.png", "image/png", content(Image.effect_noise((2000, 40), 90))
    tall = "tall.png", "image/png", content(Image.effect_noise((30, 900), 90))
    fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    for _ in range(2):
        bring(page, "drop", wide, tall, png(0), png(1), png(2), png(4))
        page.wait(lambda: len(waiting(page)) == 6)
        assert page.run(fits)
        for ink in page.colours("#tray .small, #attach"):
            assert contrast(ink[:3], ink[3:6]) >= 4.5
        page.ask("What are all of these?")
        page.idle()
    assert page.run(fits) and page.count(".user .thumbnail") == 12
    page.browser.save_screenshot(str(tmp_path / "narrow.png"))
