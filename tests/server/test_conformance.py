"""The conformance script: what it asks for our server has; what a stub lacks it says."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "conformance.py"


def conform(url):
    command = [sys.executable, str(SCRIPT), "--base-url", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_our_server_lacks_nothing(seeing):
    done = conform(f"{seeing.url}/v1")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 16 and all(line.startswith("ok ") for line in lines)


class Stub(BaseHTTPRequestHandler):
    """Answers every chat alike, streams nothing, and takes anything."""

    def do_GET(self):
        self._say({"data": [{"id": "stub"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/chat/completions"):
            self.send_error(404)
            return
        choice = {"message": {"content": "hello"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        self._say({"choices": [choice], "usage": usage})

    def _say(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def test_what_another_one_lacks_is_said():
    with HTTPServer(("127.0.0.1", 0), Stub) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        done = conform(f"http://127.0.0.1:{stub.server_port}/v1")
        stub.shutdown()
    said = dict(line[7:].partition(": ")[::2] for line in done.stdout.splitlines() if line.startswith("lacks"))
    assert done.returncode == 1 and len(said) == 12
    assert "[DONE]" in said["streaming, with usage"] and "has to be called" in said["tools"]
    assert "status 200" in said["errors"] and "status 404" in said["completions"]
    assert [line[7:] for line in done.stdout.splitlines() if line.startswith("ok")] == [
        "chat", "seeds", "thinking", "images"
    ]  # fmt: skip


def test_nobody_there():
    done = conform("http://127.0.0.1:9/v1")
    assert done.returncode == 1 and done.stderr.startswith("error: http://127.0.0.1:9/v1: it names no model")
    assert len(done.stderr.splitlines()) == 1
