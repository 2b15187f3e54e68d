"""A server on a free port in this process, as `dgemma-server` builds it."""

import threading
import time

import httpx2
import pytest
import uvicorn

from benchmarks.models import config_dict, write_random
from mlx_dgemma import Engine, load
from mlx_dgemma.server import serving
from mlx_dgemma.server.serving import Options, _bound, build, configured
from mlx_dgemma.text.transcript import Committed, Transcript
from tests.seeing import write_seeing
from tests.text.gemma import gemma_tokenizer

SIZE = 64  # of the talker's canvases
ADD = Transcript.add
SETTINGS = '{"eos_token_id": [1, 106, 50], "max_new_tokens": 256, "max_denoising_steps": 2}'


class Running:
    """A server that runs in a thread."""

    def __init__(self, options):
        self.app, self.service = build(options)
        self.bound = _bound("127.0.0.1", 0)
        self.port = self.bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(configured(self.app))
        self.server.capture_signals = lambda: __import__("contextlib").nullcontext()
        self.thread = threading.Thread(target=self.server.run, args=([self.bound],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.http = httpx2.Client(base_url=self.url, timeout=60)

    def post(self, path, body, **options):
        """The answer to a body: JSON, or bytes as they are."""
        how = {"content": body} if isinstance(body, bytes) else {"json": body}
        return self.http.post(path, **how, **options)

    def idle(self, seconds=20):
        """Waits until nothing is being written."""
        until = time.monotonic() + seconds
        while self.service.worker.waiting and time.monotonic() < until:
            time.sleep(0.02)
        assert not self.service.worker.waiting

    def stop(self):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)
        self.service.worker.stop()
        self.bound.close()


@pytest.fixture(scope="session")
def start():
    """Starts servers; they end with the tests."""
    running = []

    def begin(**options):
        running.append(Running(Options(**options)))
        return running[-1]

    yield begin
    for own in running:
        own.stop()


@pytest.fixture(scope="session")
def server(start):
    return start()


@pytest.fixture(scope="session")
def talking(start, tmp_path_factory):
    """A server of a random checkpoint with the published one's template and control tokens; see `says`."""
    text = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "sliding_window": 32}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 4096}
    folder = write_random(tmp_path_factory.mktemp("talker"), config_dict(SIZE, **text))
    (folder / "generation_config.json").write_text(SETTINGS)

    return started(start, folder, "random")


@pytest.fixture(scope="session")
def seeing(start, tmp_path_factory):
    """One of a random checkpoint that sees, for `says` too."""
    folder = write_seeing(tmp_path_factory.mktemp("seeing"))
    (folder / "generation_config.json").write_text(SETTINGS)
    return started(start, folder, "seeing", metrics=True)


def started(start, folder, name, **options):
    """A server of a checkpoint without tokenizer files."""

    def load_engine(*arguments, **options):
        return Engine(load(folder)[0], gemma_tokenizer(), name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(serving, "load_engine", load_engine)
        return start(**options)


@pytest.fixture
def says(monkeypatch):
    """Makes every text of a random server these words, whatever was denoised; control tokens are spelled out."""

    def script(words):
        ids = gemma_tokenizer().encode(words, add_special_tokens=False)

        def added(self, canvas, **options):
            size = len(canvas.tokens)
            own = ids[size * self.canvases :][:size]
            made = [*own, *[0] * (size - len(own))]
            return ADD(self, Committed(made, canvas.steps, canvas.log_p, canvas.entropy), **options)

        monkeypatch.setattr(Transcript, "add", added)

    return script
