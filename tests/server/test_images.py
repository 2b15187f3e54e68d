"""Images at every surface: data: URLs and nothing else, counted, remembered, and decoded beside everything else."""

import base64
import io
import json
import struct
import threading
import time
import zlib

import anthropic
import openai
import pytest
from PIL import Image

from mlx_dgemma import Request
from mlx_dgemma.server.images import Encoded
from mlx_dgemma.text import images
from tests.seeing import picture, png
from tests.server.test_bodies import check
from tests.server.test_talking import CALL, FLAT, PARAMETERS, TOOL

CHAT, RESPONSES, MESSAGES, COUNT = (
    "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
)  # fmt: skip
TOKENS = 45, 64, 63  # of `picture`, by number; with the marks before and behind it two more
TEXT = {"type": "text", "text": "What is this?"}


def url(number=0, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(png(number)).decode()}"


def part(address, **more):
    return {"type": "image_url", "image_url": {"url": address, **more}}


def block(number=0, **more):
    data = base64.b64encode(png(number)).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data, **more}}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def counted(server, *messages, **more):
    """The tokens of a chat's prompt, and how many of them were remembered."""
    body = {"messages": list(messages), "max_tokens": 1, **more}
    response = server.post(CHAT, body)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture(scope="module")
def plain(seeing):
    """The tokens of a prompt without images."""
    return counted(seeing, user(TEXT))[0]


@pytest.mark.parametrize(
    "parts",
    [
        [part(url(1)), TEXT],
        [{"type": "image_url", "image_url": url(1)}, TEXT],
        [TEXT, part(url(1, "image/jpeg"), detail="auto")],  # what it is says the file itself
        [part("DATA:Image/PNG;Base64," + url(1).partition(",")[2], detail="original"), TEXT],
    ],
)
def test_the_prompts_tokens_count_an_images(seeing, plain, parts):
    assert counted(seeing, user(*parts))[0] == plain + TOKENS[1] + 2


def test_the_engine_sees_what_was_sent(seeing):
    prompt = [user({"type": "image", "image": picture(2)}, TEXT, {"type": "image", "image": picture(0)})]
    own = seeing.service.engine.prepare(Request(prompt))
    assert counted(seeing, user(part(url(2)), TEXT, part(url(0))))[0] == len(own.ids)
    body = {"messages": [user(part(url(2)), TEXT, part(url(0)))], "max_tokens": 1}
    about = seeing.post(CHAT, body).json()["diffusion"]
    assert about["image_tokens"] == [TOKENS[2], TOKENS[0]] and about["image_seconds"] >= 0
    assert "image_tokens" not in seeing.post(CHAT, {"messages": [user(TEXT)], "max_tokens": 1}).json()["diffusion"]


def test_responses_and_messages_count_them_too(seeing, plain):
    items = [user({"type": "input_image", "image_url": url(1), "detail": "auto"}, {**TEXT, "type": "input_text"})]
    answer = seeing.post(RESPONSES, {"input": items, "max_output_tokens": 1})
    assert check(seeing, RESPONSES, answer) == 200
    assert answer.json()["usage"]["input_tokens"] == plain + TOKENS[1] + 2
    body = {"messages": [user(block(1), TEXT)], "max_tokens": 1}
    usage = seeing.post(MESSAGES, body).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == plain + TOKENS[1] + 2
    assert seeing.post(COUNT, body).json() == {"input_tokens": plain + TOKENS[1] + 2}


def test_details_and_budgets(seeing, plain):
    def tokens(*parts, **diffusion):
        return counted(seeing, user(*parts, TEXT), diffusion=diffusion)[0] - plain

    assert tokens(image_tokens=140) == 0  # no image, no budget needed
    most = 121  # of a square at 140
    assert tokens(part(url(1)), image_tokens=140) == most + 2
    assert tokens(part(url(1), detail="high"), image_tokens=140) == most + 2
    assert tokens(part(url(1), detail="low"), image_tokens=140) == TOKENS[1] + 2
    mixed = part(url(1), detail="low"), part(url(1), detail="auto")
    assert tokens(*mixed, image_tokens=140) == TOKENS[1] + most + 4
    for wrong in (100, 0, "140", 1e400):
        body = json.dumps({"messages": [user(TEXT)], "diffusion": {"image_tokens": wrong}}).replace("Infinity", "1e999")
        response = seeing.post(CHAT, body.encode())
        assert check(seeing, CHAT, response) == 400 and "diffusion.image_tokens" in response.text


@pytest.fixture
def closed(monkeypatch):
    """Fails the test if a file is opened for an image."""
    opened = []
    monkeypatch.setattr(images, "open_file", opened.append)
    yield
    assert not opened


FILE = "/etc/passwd"
BAD = [FILE, f"file://{FILE}", "https://example.com/a.png", "HTTP://localhost/a.png", "//example.com/a", "~/a.png", ""]


@pytest.mark.parametrize(
    "address", [*BAD, f"data:{FILE}", "data:text/plain;base64,AA==", "data:image/png,AA", "data:,"]
)
def test_nothing_but_a_data_url_is_taken(seeing, closed, address):
    image = {"type": "input_image", "image_url": address}
    for path, body in (
        (CHAT, {"messages": [user(part(address))]}),
        (CHAT, {"messages": [user({"type": "image_url", "image_url": address})]}),
        (CHAT, {"messages": [user(image)]}),
        (RESPONSES, {"input": [user(image)]}),
        (MESSAGES, {"max_tokens": 5, "messages": [user(block(data=address))]}),
        (MESSAGES, {"max_tokens": 5, "messages": [user(block(media_type=address))]}),
        (COUNT, {"messages": [user(block(data=address))]}),
    ):
        assert check(seeing, path, seeing.post(path, body)) == 400, body


@pytest.mark.parametrize("address", [*BAD, url()])
def test_our_own_form_of_a_part_is_not_taken(seeing, closed, address):
    """What `text.messages` would open as a path."""
    image = {"type": "image", "image": address}
    call = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": {}}}]}
    result = {"role": "tool", "tool_call_id": "c", "content": [image]}
    output = [
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [image]},
    ]
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {}}]}
    told = user({"type": "tool_result", "tool_use_id": "c", "content": [image]})
    for path, body in (
        (CHAT, {"messages": [user(image)]}),
        (CHAT, {"messages": [user(TEXT), call, result]}),
        (CHAT, {"messages": [user(TEXT), call, {**result, "content": [image, {"a": 1}]}]}),
        (CHAT, {"messages": [{"role": "system", "content": [image]}, user(TEXT)]}),
        (RESPONSES, {"input": [user(image)]}),
        (RESPONSES, {"input": [user({**TEXT, "type": "input_text"}), *output]}),
        (MESSAGES, {"max_tokens": 5, "messages": [user(image)]}),
        (MESSAGES, {"max_tokens": 5, "messages": [user(TEXT), use, told]}),
        (MESSAGES, {"max_tokens": 5, "messages": [user(TEXT)], "system": [image]}),
        (COUNT, {"messages": [user(image)]}),
    ):
        assert check(seeing, path, seeing.post(path, body)) == 400, body


def test_sources_of_other_kinds_are_refused(seeing, closed):
    for source in ({"type": "url", "url": "https://example.com/a.png"}, {"type": "file", "file_id": "x"}, None, [], {}):
        body = {"max_tokens": 5, "messages": [user({"type": "image", "source": source})]}
        response = seeing.post(MESSAGES, body)
        assert check(seeing, MESSAGES, response) == 400 and "messages[0].content[0]" in response.text
    for image in ({"file_id": "x"}, {"image_url": None}, {"image_url": {"url": url()}, "detail": 3}):
        body = {"input": [user({"type": "input_image", **image})], "max_output_tokens": 1}
        response = seeing.post(RESPONSES, body)
        assert check(seeing, RESPONSES, response) == (200 if "detail" in image else 400)


def bomb(width, height):
    """A PNG whose header says so many pixels; its data are a few."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def bmp():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "BMP")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content", [bomb(60_000, 60_000), bomb(9, 9), png(0)[:200], b"no image", bmp(), b"GIF89a", b""]
)
def test_files_that_cannot_be_read_are_a_line(seeing, content):
    data = base64.b64encode(content).decode()
    address = f"data:image/png;base64,{data}"
    for path, body in (
        (CHAT, {"messages": [user(part(address))]}),
        (RESPONSES, {"input": [user({"type": "input_image", "image_url": address})]}),
        (MESSAGES, {"max_tokens": 5, "messages": [user(block(data=data))]}),
        (COUNT, {"messages": [user(block(data=data))]}),
    ):
        response = seeing.post(path, body)
        assert check(seeing, path, response) == 400 and ".content[0]" in response.text


def test_as_many_as_the_server_takes(seeing, monkeypatch):
    small = f"data:image/png;base64,{base64.b64encode(bomb(9, 9)).decode()}"
    response = seeing.post(CHAT, {"messages": [user(*[part(small)] * 9), user(*[part(small)] * 8)]})
    assert check(seeing, CHAT, response) == 400 and "17 images; give at most 16" in response.text
    monkeypatch.setattr(seeing.service.images, "most", 1)
    assert counted(seeing, user(part(url()), TEXT))
    response = seeing.post(MESSAGES, {"max_tokens": 5, "messages": [user(block(), block())]})
    assert check(seeing, MESSAGES, response) == 400 and "2 images; give at most 1" in response.text


def test_a_large_photo_passes(seeing):
    """12 megapixels of a photo take some 5 MB; noise takes more."""
    stream = io.BytesIO()
    Image.effect_noise((4032, 3024), 90).convert("RGB").save(stream, "JPEG", quality=92)
    assert len(stream.getvalue()) > 5 << 20
    address = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    assert counted(seeing, user(part(address), TEXT))[0]


@pytest.fixture
def slow(monkeypatch):
    """Decoding takes its time; what was begun."""
    decode, begun = Encoded.decoded, []

    def decoded(self, *arguments):
        begun.append(self.place)
        time.sleep(0.5)
        return decode(self, *arguments)

    monkeypatch.setattr(Encoded, "decoded", decoded)
    return begun


def test_nobody_waits_for_an_image_of_another(seeing, slow):
    body = {"messages": [user(*[part(url(n)) for n in range(4)], TEXT)], "max_tokens": 1}
    answers = []
    thread = threading.Thread(target=lambda: answers.append(seeing.post(CHAT, body).status_code))
    thread.start()
    while not slow:
        time.sleep(0.01)
    began = time.monotonic()
    assert seeing.http.get("/health").status_code == 200
    assert time.monotonic() - began < 0.4
    assert counted(seeing, user(TEXT)) and not answers
    thread.join()
    assert answers == [200] and len(slow) == 4


def test_a_client_that_goes_away_has_no_images_decoded(seeing, slow):
    body = {"messages": [user(*[part(url(n)) for n in range(12)], TEXT)], "max_tokens": 1}
    before = seeing.service.worker.counts.requests
    with pytest.raises(Exception, match="timed out"):
        seeing.post(CHAT, body, timeout=0.3)
    time.sleep(2)
    assert 1 <= len(slow) < 5 and seeing.service.worker.counts.requests == before


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, COUNT])
def test_a_checkpoint_that_cannot_see_says_so(talking, path):
    image = block() if path.startswith(MESSAGES) else part(url())
    if path == RESPONSES:
        image = {"type": "input_image", "image_url": url()}
    message = user(image)
    response = talking.post(path, {"input" if path == RESPONSES else "messages": [message], "max_tokens": 5})
    assert check(talking, path, response) == 400 and "image" in response.text


def test_what_models_take_is_told(seeing, talking):
    for server, takes in ((seeing, ["text", "image"]), (talking, ["text"])):
        for row in server.http.get("/v1/models").json()["data"]:
            assert row["input_modalities"] == row["architecture"]["input_modalities"] == takes


def test_images_are_metered(seeing):
    def now():
        lines = [line for line in seeing.http.get("/metrics").text.splitlines() if "_image" in line]
        return [float(line.split()[1]) for line in lines if line[0] != "#"]

    count, tokens = now()
    counted(seeing, user(part(url(1)), part(url(2)), TEXT))
    assert now() == [count + 2, tokens + TOKENS[1] + TOKENS[2]]


def test_an_image_is_remembered_with_its_turn(seeing, says):
    says("A cat.<turn|>")
    seeing.service.engine.prefixes.clear()
    first = user(part(url(1)), {"type": "text", "text": "What is it?"})
    tokens, cached = counted(seeing, first)
    assert not cached
    more = {"role": "assistant", "content": "A cat."}, user(TEXT)
    assert TOKENS[1] < counted(seeing, first, *more)[1] <= tokens
    other = user(part(url(4)), {"type": "text", "text": "What is it?"})  # as large, and another
    assert counted(seeing, other, *more)[1] < TOKENS[1]
    low = user(part(url(1), detail="low"), {"type": "text", "text": "What is it?"})
    assert counted(seeing, low, *more)[1] > TOKENS[1]  # its budget is the same here


SAID = f"<|channel>thought\nhm, well<channel|>{CALL}<|tool_response>"


@pytest.fixture(scope="module")
def client(seeing):
    return openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("asked", [[TEXT], [part(url(1)), TEXT]])
@pytest.mark.parametrize("result", ["seen", [part(url(2)), TEXT], [part(url(2)), TEXT, part(url(0))]])
def test_a_round_of_tools_with_images(seeing, client, says, asked, result):
    """The model's own turn stands behind its prompt, images in both or not: its thought is not lost."""

    def told(parts):
        """The tokens of the images among them."""
        names = [p["image_url"]["url"] for p in parts if isinstance(p, dict) and p["type"] == "image_url"]
        return sum(TOKENS[[url(n) for n in range(3)].index(name)] + 2 for name in names)

    def tokens(asked, result):
        says(SAID)
        ask = {"model": "seeing", "tools": [TOOL], "max_tokens": 300}
        first = client.chat.completions.create(messages=[user(*asked)], **ask)
        message = first.choices[0].message
        (call,) = message.tool_calls
        assert message.reasoning_content == "hm, well"
        says("It rains.<turn|>")
        history = [user(*asked), message.model_dump(exclude_none=True)]
        history.append({"role": "tool", "tool_call_id": call.id, "content": result})
        second = client.chat.completions.create(messages=history, **ask)
        assert second.choices[0].message.content == "It rains."
        assert second.usage.prompt_tokens_details.cached_tokens > told(asked)
        return first.usage.prompt_tokens, second.usage.prompt_tokens

    words = result if isinstance(result, str) else [TEXT]
    without, with_them = tokens([TEXT], words), tokens(asked, result)
    assert with_them[0] - without[0] == told(asked)
    assert with_them[1] - without[1] == told(asked) + told(result)


def test_results_of_tools_with_the_other_clients(seeing, client, says):
    says(SAID)
    ask = {"model": "seeing", "tools": [FLAT]}
    whole = client.responses.create(input="look", **ask)
    (call,) = [item for item in whole.output if item.type == "function_call"]
    says("It rains.<turn|>")
    image = {"type": "input_image", "image_url": url(1), "detail": "auto"}
    output = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": [image, {**TEXT, "type": "input_text"}],
    }
    items = [{"role": "user", "content": "look"}, *(item.model_dump() for item in whole.output)]
    seen = client.responses.create(input=[*items, output], **ask)
    blind = client.responses.create(input=[*items, {**output, "output": output["output"][1:]}], **ask)
    assert seen.output_text == "It rains." and seen.usage.input_tokens == blind.usage.input_tokens + TOKENS[1] + 2

    other = anthropic.Anthropic(base_url=seeing.url, api_key="none", max_retries=0)
    says(SAID)
    ask = {"model": "seeing", "max_tokens": 300, "tools": [{"name": "look", "input_schema": PARAMETERS}]}
    whole = other.messages.create(messages=[user(block(0), TEXT)], **ask)
    says("It rains.<turn|>")
    result = {"type": "tool_result", "tool_use_id": whole.content[-1].id, "content": [block(1), TEXT]}
    history = [user(block(0), TEXT), {"role": "assistant", "content": whole.content}, user(result, TEXT, block(2))]
    final = other.messages.create(messages=history, **ask)
    assert final.content[0].text == "It rains."
    told = other.messages.count_tokens(messages=history, model="seeing", tools=ask["tools"]).input_tokens
    history[2] = user({**result, "content": [TEXT]}, TEXT)
    bare = other.messages.count_tokens(messages=history, model="seeing", tools=ask["tools"]).input_tokens
    assert told - bare == TOKENS[1] + TOKENS[2] + 4
