"""A server on two ranks: the first speaks HTTP, the other works along; both end together."""

import json
import signal
import threading
import time
import urllib.request

import pytest
from PIL import Image

from mlx_dgemma import GenerationConfig, Request
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.distributed.relay import as_json, of_json
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.images import read_picture
from mlx_dgemma.text.request import CanvasPlan
from tests.distributed.ranks import end_ranks, free_ports, start_ranks
from tests.seeing import png, write_seeing, write_tokenizer
from tests.server.test_images import url, user

ASKED = ("upper abc def", "count 20 to 60", "sudoku 1..4..1.2....3.1", "spell 42", "roman 1994")
PARTS = {"type": "text", "text": "What is this?"}


class Pair:
    """Two ranks that serve."""

    def __init__(self, folder, *options):
        self.port = free_ports(1)[0]
        arguments = ["-m", "mlx_dgemma.server", "--distributed", "canvas", "--port", str(self.port), *options]
        self.ranks = start_ranks(2, arguments, folder)
        for line in self.ranks[0].stderr:
            if "Ctrl-C stops" in line:
                return
        pytest.fail(str(end_ranks(self.ranks, 1)))

    def open(self, body):
        """The response to a chat, as it comes."""
        data = json.dumps({"seed": 3, **body}).encode()
        address = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return urllib.request.urlopen(urllib.request.Request(address, data, {"Content-Type": "application/json"}))

    def ask(self, content, **more):
        with self.open({"messages": [{"role": "user", "content": content}], **more}) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    def end(self, number=signal.SIGINT, rank=0):
        self.ranks[rank].send_signal(number)
        began = time.monotonic()
        ended = end_ranks(self.ranks, 60)
        return [own.code for own in ended], time.monotonic() - began


@pytest.mark.slow
def test_several_clients_are_answered_and_one_that_leaves_holds_nobody_up(tmp_path):
    pair, answers = Pair(tmp_path), {}
    alone = {asked: pair.ask(asked) for asked in ASKED}
    assert alone["upper abc def"] == "ABC DEF" and alone["spell 42"] == "forty-two"
    # a stream that is read no further; then several at a time, every second one with less work
    stream = pair.open({"messages": [{"role": "user", "content": "count 20 to 60"}], "stream": True})
    stream.read(10)
    stream.close()

    def ask(number, asked):
        answers[asked] = pair.ask(asked, diffusion={"fast": number % 2 == 0})

    threads = [threading.Thread(target=ask, args=own) for own in enumerate(ASKED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == alone
    assert pair.end()[0] == [130, 0]


@pytest.mark.slow
def test_images_reach_all_ranks(tmp_path):
    folder = write_tokenizer(write_seeing(tmp_path / "seeing"))
    pair = Pair(tmp_path, "--model", str(folder))
    asked = user({"type": "image_url", "image_url": {"url": url()}}, PARTS)["content"]
    first, again = (pair.ask(asked, max_tokens=32) for _ in range(2))
    assert first == again
    assert pair.end()[0] == [130, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGKILL, [1, -9]), (signal.SIGINT, [1, 130])])
def test_a_rank_that_ends_ends_the_server(number, codes, tmp_path):
    pair = Pair(tmp_path)
    assert pair.ask("roman 12") == "XII"
    found, seconds = pair.end(number, rank=1)
    assert found == codes and seconds < 12


def test_a_request_is_the_same_behind_json():
    image = read_picture(png(0), "an image", budget=70)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what"}]
    request = Request(
        [{"role": "user", "content": content}], seed=2**40, settings=GenerationConfig(fast=True, t_max=0.9),
        canvas=CanvasPlan("a {3}", (1, 2), 0.5, 7), stop=["x"], thinking=True, alternatives=3, image_tokens=70,
        tools=[{"type": "function", "function": {"name": "f"}}],
        response_format={"type": "json_object"},
    )  # fmt: skip
    told = of_json(json.loads(json.dumps(as_json(request))))
    got, want = told.prompt[0]["content"][0]["image"], image
    assert (got.pixels == want.pixels).all() and (got.key, got.grid, got.width) == (want.key, want.grid, want.width)
    assert told.prompt[0]["content"][1] == content[1]
    assert (told.settings, told.settings.given) == (request.settings, request.settings.given)
    assert told.plan == CanvasPlan("a {3}", [1, 2], 0.5, 7)
    for name in ("seed", "thinking", "alternatives", "image_tokens", "response_format"):
        assert getattr(told, name) == getattr(request, name)
    assert list(told.stop) == ["x"] and list(told.tools) == list(request.tools)


def test_what_only_python_has_is_refused():
    for request in (Request("a", noise=SeededNoise(0, 10)), Request("a", images=[Image.new("RGB", (9, 9))])):
        with pytest.raises(DGemmaError, match="cannot be told to other ranks"):
            as_json(request)
