"""A server on a free port in this process, as `dgemma-server` builds it."""

import threading
import time

import httpx2
import pytest
import uvicorn

from mlx_dgemma.server.serving import Options, _bound, build, configured


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
