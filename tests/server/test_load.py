"""Many clients at a time, some of which go away or send nonsense: nothing hangs or grows, every answer is whole."""

import json
import os
import random
import socket
import threading
import time

import httpx2
import pytest

from mlx_dgemma.tasks import TASKS, draw_examples

REQUESTS = int(os.environ.get("DGEMMA_LOAD", "120"))
CLIENTS = 16
PATH = "/v1/chat/completions"
BROKEN = [
    b"{",
    b"[]",
    b'{"messages": 3}',
    b"\xff\xfe",
    b'{"messages": [{"role": "user", "content": NaN}]}',
    b"[" * 5000,
]


def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Client(threading.Thread):
    """Asks until there is nothing left to ask."""

    def __init__(self, running, left, number):
        super().__init__(daemon=True)
        self.running, self.left, self.choice = running, left, random.Random(number)
        self.whole = self.refused = self.gone = self.full = 0
        self.faults = []

    def run(self):
        with httpx2.Client(base_url=self.running.url, timeout=120) as http:
            while self.left:
                try:
                    example = self.left.pop()
                except IndexError:
                    return
                self.ask(http, example)

    def ask(self, http, example):
        kind = self.choice.random()
        body = {"messages": [{"role": "user", "content": example.prompt}], "seed": self.choice.randrange(1000)}
        if kind < 0.15:
            response = http.post(PATH, content=self.choice.choice(BROKEN))
            self.refused += response.status_code == 400
            self.faults += [] if response.status_code == 400 else [response.text]
        elif kind < 0.35:
            self.leave(json.dumps(body | {"stream": kind < 0.25, "max_tokens": 4000}).encode())
        elif kind < 0.7:
            response = http.post(PATH, json=body)
            self.full += response.status_code == 503
            self.check(response, lambda: response.json()["choices"][0]["finish_reason"] in ("stop", "length"))
        else:
            response = http.post(PATH, json=body | {"stream": True, "diffusion": {"drafts": "tokens"}})
            self.full += response.status_code == 503
            self.check(
                response, lambda: response.text.endswith("data: [DONE]\n\n") and '"finish_reason":"' in response.text
            )

    def check(self, response, is_whole):
        if response.status_code == 200:
            self.whole += 1
            self.faults += [] if is_whole() else [response.text[-200:]]
        elif response.status_code != 503:
            self.faults.append(response.text)

    def leave(self, body):
        """Asks, and goes away after a moment."""
        with socket.create_connection(("127.0.0.1", self.running.port)) as client:
            head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[: self.choice.choice([len(body), len(body) // 2])])
            time.sleep(self.choice.random() / 5)
        self.gone += 1


@pytest.mark.slow
def test_nothing_hangs_and_nothing_grows(start):
    running = start(queue=32)
    examples = [example for task in TASKS for example in draw_examples(task, 1000, 1 + REQUESTS // len(TASKS))]
    random.Random(0).shuffle(examples)
    half = len(examples) // 2
    sizes, clients = [], []
    for part in (examples[:half], examples[half:]):
        clients += [Client(running, part, number) for number in range(len(clients), len(clients) + CLIENTS)]
        for client in clients[-CLIENTS:]:
            client.start()
        for client in clients[-CLIENTS:]:
            client.join(300)
            assert not client.is_alive(), "a request is stuck"
        running.idle(10)
        sizes.append(rss())
    assert [fault for client in clients for fault in client.faults] == []
    assert sum(client.whole for client in clients) > REQUESTS // 4
    assert sizes[1] - sizes[0] < 64 << 20, sizes
    assert running.http.get("/health").json() == {"status": "ok", "waiting": 0}
