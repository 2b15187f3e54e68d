"""Who is let in, how much is taken, and how the command ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_dgemma.server import guard, serving
from tests.server.test_chat import SLOWLY

PATH = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "roman 1994"}], "seed": 1}
KEY = "a-key"


@pytest.fixture(scope="module")
def closed(start):
    return start(
        keys=(KEY, "another"),
        allow_origin=("app://zed",),
        allow_host=("mac.local",),
        queue=0,
        max_batch=1,
        metrics=True,
    )


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "localhost.evil", "127.0.0.1.nip.io"])
def test_other_hosts_are_refused(server, host):
    assert server.http.get("/health", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_this_machines_names_are_taken(server, host):
    assert server.http.get("/health", headers={"Host": host}).status_code == 200


def test_a_request_without_a_host_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b" 403 " in client.recv(1000) or b" 400 " in client.recv(1000)


def test_other_pages_are_refused_before_the_body_is_read(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nContent-Length: 1000\r\n\r\n"
        )
        client.sendall(head.encode())  # and never a body
        client.settimeout(5)
        assert b" 403 " in client.recv(2000)


def test_pages_that_may_ask_are_told_so(closed, server):
    allowed = {"Origin": "app://zed", "Authorization": f"Bearer {KEY}"}
    response = closed.post(PATH, ASK, headers=allowed)
    assert response.status_code == 200 and response.headers["access-control-allow-origin"] == "app://zed"
    assert "access-control-allow-credentials" not in response.headers
    asked = {"Origin": "app://zed", "Access-Control-Request-Method": "POST"}
    assert closed.http.options(PATH, headers=asked).status_code == 204
    assert server.http.options(PATH, headers=asked).status_code == 403
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.post(PATH, ASK, headers=own).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer no"}, {"x-api-key": ""}, {"Authorization": KEY}, {"x-api-key": KEY[:-1]}]
)
def test_without_a_key_nothing_but_health(closed, headers):
    response = closed.post(PATH, ASK, headers=headers)
    assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert closed.http.get("/v1/models", headers=headers).status_code == 401
    assert closed.http.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"x-api-key": "another"}, {"authorization": f"bearer {KEY}"}]
)
def test_with_a_key(closed, headers):
    assert closed.post(PATH, ASK, headers=headers).status_code == 200


def test_figures_only_when_asked_for_and_behind_the_key(closed, server):
    assert server.http.get("/metrics").status_code == 404 and closed.http.get("/metrics").status_code == 401
    own = {"x-api-key": KEY}
    before, _, after = (
        closed.http.get("/metrics", headers=own),
        closed.post(PATH, ASK, headers=own),
        closed.http.get("/metrics", headers=own),
    )
    counts = [dict(line.split(" ") for line in text.text.splitlines() if line[0] != "#") for text in (before, after)]
    grown = {name: float(counts[1][name]) - float(counts[0][name]) for name in counts[0]}
    assert (
        grown["dgemma_requests_total"] == 1 and grown["dgemma_tokens_total"] == 7 and grown["dgemma_steps_total"] == 2
    )
    assert 0 < grown["dgemma_full_steps_total"] <= 2
    assert counts[1]["dgemma_alive"] == "1" and counts[1]["dgemma_waiting"] == "0"


def test_a_full_queue_says_when_to_come_back(closed):
    own = {"x-api-key": KEY}
    response = closed.post(PATH, ASK | {"n": 2}, headers=own)  # one text at a time, and none may wait
    assert (
        response.status_code == 503
        and response.headers["retry-after"]
        and response.json()["error"]["code"] == "queue_full"
    )
    assert closed.post(PATH, ASK, headers=own).status_code == 200


def test_bodies_have_a_limit(server, monkeypatch):
    monkeypatch.setattr(guard, "BODY", 1000)
    assert server.post(PATH, b"x" * 2000).status_code == 413

    def pieces():
        for _ in range(20):
            yield b"x" * 100

    assert server.http.post(PATH, content=pieces()).status_code == 413
    assert server.post(PATH, ASK).status_code == 200


def test_a_body_that_never_comes_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(guard, "SLOW", 0.2)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n".encode())
        client.settimeout(5)
        assert b" 408 " in client.recv(2000)


def test_a_body_that_comes_in_drops_has_no_longer(server, monkeypatch):
    monkeypatch.setattr(guard, "SLOW", 0.5)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n".encode())
        client.settimeout(0.05)
        began, answer = time.monotonic(), b""
        while not answer and time.monotonic() - began < 5:
            client.sendall(b" ")
            with suppress(TimeoutError):
                answer = client.recv(2000)
        assert b" 408 " in answer and time.monotonic() - began < 2


def test_a_reader_that_takes_nothing_is_let_go(server, monkeypatch):
    monkeypatch.setattr(serving, "STALLED", 0.3)
    body = json.dumps(SLOWLY | {"stream": True, "diffusion": SLOWLY["diffusion"] | {"drafts": "tokens"}})
    server.bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
    connections = server.server.server_state.connections
    before = set(connections)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        assert until(lambda: server.service.worker.waiting and connections - before)
        server.bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert until(lambda: not connections - before)
    server.idle(10)


def until(is_so, seconds=15):
    """Waits for something; whether it came to be."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return is_so()


@pytest.mark.parametrize("stream", [True, False])
def test_a_socket_that_is_half_closed_holds_nothing(server, stream):
    body = json.dumps(SLOWLY | {"stream": stream})
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        assert until(lambda: server.service.worker.waiting)
        client.shutdown(socket.SHUT_WR)
        server.idle(5)
        client.settimeout(5)
        while client.recv(4096):
            pass
    with socket.create_connection(("127.0.0.1", server.port)) as client:  # in the middle of a body
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{{".encode())
        client.shutdown(socket.SHUT_WR)
        client.settimeout(5)
        client.recv(4096)
    assert server.post(PATH, ASK).status_code == 200


def test_a_head_that_never_ends_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(serving, "HEAD", 0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(5)
        began = time.monotonic()
        for _ in range(100):
            try:
                client.sendall(b"G")
                time.sleep(0.05)
            except OSError:
                break
        assert time.monotonic() - began < 3


def test_floods_of_headers_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(5)
        try:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 50_000)
            answer = client.recv(2000)
        except OSError:
            answer = b""
        assert answer == b"" or b" 400 " in answer
    assert server.http.get("/health").status_code == 200


def test_an_error_of_ours_is_a_500_and_the_thread_lives_on(server, monkeypatch):
    def broken(self):
        raise KeyError("of ours")

    from mlx_dgemma.text.generation import _Writer

    with monkeypatch.context() as patched:
        patched.setattr(_Writer, "events", broken)
        response = server.post(PATH, ASK)
        assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
        assert "roman" not in response.text
        text = server.post(PATH, ASK | {"stream": True}).text
        assert '"error"' in text and text.endswith("data: [DONE]\n\n")
    assert server.post(PATH, ASK).status_code == 200


def test_no_room_is_a_503_and_what_was_remembered_is_forgotten(server, monkeypatch):
    from mlx_dgemma.text.generation import _Writer

    def large(self):
        raise RuntimeError("[malloc] Unable to allocate 1 bytes")

    server.post(PATH, ASK)
    assert server.service.engine.prefixes.entries
    with monkeypatch.context() as patched:
        patched.setattr(_Writer, "events", large)
        response = server.post(PATH, ASK)
        assert response.status_code == 503 and response.json()["error"]["code"] == "out_of_memory"
    assert not server.service.engine.prefixes.entries and server.post(PATH, ASK).status_code == 200


def test_health_says_when_the_models_thread_is_dead(start):
    own = start()
    own.service.worker.call(lambda engine: 1 / 0)
    until = time.monotonic() + 10
    while own.service.worker.is_alive and time.monotonic() < until:
        time.sleep(0.02)
    assert own.http.get("/health").status_code == 503
    assert own.post(PATH, ASK).status_code == 503


def command(*arguments, **more):
    environment = {**os.environ, **more}
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_dgemma.server", "--port", "0", *arguments],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_is_and_ends_with_a_signal(number):
    process = command()
    assert "at http://127.0.0.1:" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(20) == 128 + number and "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_usage_is_told_in_a_line(tmp_path):
    for arguments, told, code in (
        (("--host", "0.0.0.0"), "give --api-key-file", 1),
        (("--api-key-file", str(tmp_path / "none")), "cannot be read", 1),
        (("--api-key-file", os.devnull), "", 1),
        (("--queue", "-1"), "--queue takes", 2),
        (("--context", "7"), "--context takes", 1),
        (("--adapter", "x"), "not supported yet", 2),
        (("--model", str(Path("nowhere") / "x")), "nowhere", 1),
    ):
        process = command(*arguments)
        _, told_us = process.communicate(timeout=60)
        assert process.returncode == code and told in told_us and "Traceback" not in told_us, arguments
