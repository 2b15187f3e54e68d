"""Many clients at a time, some of which go away or send nonsense: nothing hangs or grows, every answer is whole.

`DGEMMA_LOAD=500` asks so often; `DGEMMA_LOAD_SECONDS=120` goes on for so long, and tells its figures with `-s`.
"""

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from mlx_dgemma.tasks.embedded import LEARNED, draw_examples

REQUESTS = int(os.environ.get("DGEMMA_LOAD", "120"))
SECONDS = float(os.environ.get("DGEMMA_LOAD_SECONDS", "0"))
CLIENTS = 16
ASKED = 48  # different requests, each of which has the answer that it has alone
ROOM = 32 << 20  # bytes that the process may grow by after the first half, or the first minute
PATH = "/v1/chat/completions"
STATM = Path("/proc/self/statm")
BROKEN = [
    b"{",
    b"[]",
    b'{"messages": 3}',
    b"\xff\xfe",
    b'{"messages": [{"role": "user", "content": NaN}]}',
    b"[" * 5000,
]


def rss():
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Left:
    """How many requests are left: so many, or as many as there is time for."""

    def __init__(self, requests, seconds):
        self.requests, self.until, self.lock = (
            requests,
            time.monotonic() + seconds if seconds else None,
            threading.Lock(),
        )

    def take(self):
        """Whether there is another one."""
        with self.lock:
            self.requests -= 1
            return self.requests >= 0 if self.until is None else time.monotonic() < self.until


class Client(threading.Thread):
    """Asks until there is nothing left to ask."""

    def __init__(self, running, left, answers, number):
        super().__init__(daemon=True)
        self.running, self.left, self.answers, self.choice = running, left, answers, random.Random(number)
        self.counts, self.faults = Counter(), []

    def run(self):
        with httpx2.Client(base_url=self.running.url, timeout=120) as http:
            while self.left.take():
                body = self.choice.choice(list(self.answers))
                self.ask(http, json.loads(body), self.answers[body])

    def ask(self, http, body, answer):
        kind = self.choice.random()
        if kind < 0.15:
            response = http.post(PATH, content=self.choice.choice(BROKEN))
            self.told("refused", response.status_code == 400, response)
        elif kind < 0.35:
            self.leave(json.dumps(body | {"stream": kind < 0.25, "max_tokens": 4000}).encode())
        else:
            more = {"stream": True, "diffusion": {"drafts": "tokens"}} if kind < 0.65 else {}
            response = http.post(PATH, json=body | more)
            if response.status_code == 503:
                self.told("full", "retry-after" in response.headers, response)
            else:
                self.told("whole", response.status_code == 200 and said(response) == answer, response)

    def told(self, kind, is_right, response):
        self.counts[kind] += 1
        if not is_right:
            self.faults.append((kind, response.status_code, response.text[-300:]))

    def leave(self, body):
        """Asks, all of it or half; and after a moment goes away, or says that nothing more will come."""
        with socket.create_connection(("127.0.0.1", self.running.port)) as client:
            head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[: self.choice.choice([len(body), len(body) // 2])])
            time.sleep(self.choice.random() / 5)
            if self.choice.random() < 0.3:
                client.shutdown(socket.SHUT_WR)
                client.settimeout(30)
                while client.recv(1 << 16):
                    pass
        self.counts["gone"] += 1


def said(response):
    """The text and the reason of an answer, streamed or whole."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        (choice,) = response.json()["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    *found, done = [part.removeprefix("data: ") for part in response.text.split("\n\n") if part.startswith("data: ")]
    choices = [choice for event in found for choice in json.loads(event)["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    return (text, choices[-1]["finish_reason"]) if done == "[DONE]" else (text, "no end")


class Watch(threading.Thread):
    """Looks at the process's size now and then, for so long."""

    def __init__(self):
        super().__init__(daemon=True)
        self.began, self.sizes, self.is_over = time.monotonic(), [], threading.Event()

    def run(self):
        while not self.is_over.wait(0.5):
            self.sizes.append((time.monotonic() - self.began, rss()))

    def growth(self, first):
        """Bytes by which the process was ever larger than in the first seconds."""
        before = max(size for seconds, size in self.sizes if seconds <= first)
        return max([size for seconds, size in self.sizes if seconds > first] or [before]) - before


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="the process's size is read from /proc")
def test_nothing_hangs_and_nothing_grows(start):
    running = start(queue=32)
    examples = [own for task in LEARNED for own in draw_examples(task, 1000, 1 + ASKED // len(LEARNED))][:ASKED]
    bodies = [
        {"messages": [{"role": "user", "content": own.prompt}], "seed": number} for number, own in enumerate(examples)
    ]
    answers = {json.dumps(body): said(running.post(PATH, body)) for body in bodies}
    left, watch = Left(REQUESTS, SECONDS), Watch()
    clients = [Client(running, left, answers, number) for number in range(CLIENTS)]
    for thread in [watch, *clients]:
        thread.start()
    for client in clients:
        client.join(SECONDS + 300)
        assert not client.is_alive(), "a request is stuck"
    took = time.monotonic() - watch.began
    running.idle(10)
    watch.is_over.set()
    watch.join()
    counts = sum((client.counts for client in clients), Counter())
    growth = watch.growth(60 if took > 90 else took / 2)
    print(f"{dict(counts)} in {took:.0f} s, {growth >> 20} MB of growth, {max(watch.sizes)[1] >> 20} MB in the end")
    assert [fault for client in clients for fault in client.faults] == []
    assert counts["whole"] > sum(counts.values()) // 4
    assert growth < ROOM
    assert running.http.get("/health").json() == {"status": "ok", "waiting": 0}
    assert not running.service.worker._jobs and len(running.server.server_state.connections) <= 1
