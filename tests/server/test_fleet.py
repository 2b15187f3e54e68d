"""The fleet of examples/fleet on loopback: who goes where, and what a server's death does."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.distributed.ranks import free_ports

FLEET = Path(__file__).parents[2] / "examples" / "fleet" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
LONG = "count 1 to 60"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


class Fleet:
    """Two servers and nginx, with the example's configuration but for its ports."""

    def __init__(self, folder):
        self.front, *self.ports = free_ports(3)
        text = FLEET.read_text()
        for old, new in zip(("8080", "8081", "8082"), (self.front, *self.ports), strict=True):
            assert f"127.0.0.1:{old}" in text
            text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
        (folder / "nginx.conf").write_text(text)
        self.servers = [
            subprocess.Popen([sys.executable, "-m", "mlx_dgemma.server", "--quiet", "--metrics", "--port", str(port)])
            for port in self.ports
        ]
        command = [NGINX, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]
        self.nginx = subprocess.Popen(command, stderr=subprocess.PIPE)
        for port in (*self.ports, self.front):
            self.wait(port)

    def wait(self, port):
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"nobody answers at port {port}")

    def open(self, conversation, **body):
        body = {"messages": [{"role": "user", "content": "roman 1994"}], **body}
        headers = {"Content-Type": "application/json", "X-Conversation": conversation}
        address = f"http://127.0.0.1:{self.front}/v1/chat/completions"
        return urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers), timeout=60)

    def ask(self, conversation):
        with self.open(conversation) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    def asked(self):
        """How many requests each server has had; None of a dead one."""
        counts = []
        for port in self.ports:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    lines = answer.read().decode().splitlines()
            except OSError:
                counts.append(None)
                continue
            (line,) = [line for line in lines if line.startswith("dgemma_requests_total ")]
            counts.append(int(float(line.split()[1])))
        return counts

    def end(self):
        self.nginx.send_signal(signal.SIGQUIT)
        for server in self.servers:
            server.kill()
        self.nginx.communicate(timeout=20)


@pytest.fixture
def fleet(tmp_path):
    os.chmod(tmp_path, 0o755)
    made = Fleet(tmp_path)
    yield made
    made.end()


def test_a_conversation_stays_and_a_death_is_told_and_survived(fleet):
    homes = {}
    for name in "abcdefgh":
        before = fleet.asked()
        for _ in range(3):
            assert fleet.ask(name) == "MCMXCIV"
        grown = [after - was for after, was in zip(fleet.asked(), before, strict=True)]
        assert sorted(grown) == [0, 3], f"{name} was sent to both"
        homes[name] = grown.index(3)
    assert set(homes.values()) == {0, 1}  # both have something to do
    victim = next(iter(homes))
    stream = fleet.open(victim, messages=[{"role": "user", "content": LONG}], stream=True)
    assert stream.readline()  # the answer has begun
    fleet.servers[homes[victim]].kill()
    fleet.servers[homes[victim]].wait()
    with pytest.raises((http.client.HTTPException, OSError)):  # an error, not an end that looks like one
        stream.read()
    time.sleep(0.5)  # nginx learns that its kept connections are closed
    for name in homes:  # everybody is answered, by the one that is left
        assert fleet.ask(name) == "MCMXCIV"
    assert fleet.asked()[homes[victim]] is None


def test_all_dead_is_an_error(fleet):
    for server in fleet.servers:
        server.kill()
        server.wait()
    with pytest.raises(urllib.error.HTTPError) as error:
        fleet.ask("a")
    assert error.value.code == 502
