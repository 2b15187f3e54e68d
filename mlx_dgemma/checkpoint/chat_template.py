"""Chat templates, rendered in a process of their own: a template comes with a download, and may hang or grow.

The embedded checkpoint's template is ours and is rendered here: starting another interpreter takes a tenth of a second.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import time
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from mlx_dgemma.errors import DGemmaError

SECONDS = 10.0  # that rendering may take
MEMORY = 1 << 30  # bytes that it may use
SIZE = 16 << 20  # characters of the text, at most; or four times what goes in
LOOK_AFTER = 0.5  # seconds, after which the process's memory is looked at
OWN = Path(__file__).parent / "embedded" / "chat_template.jinja"


def render(source: str, variables: dict[str, Any]) -> str:
    """The text of a template with these variables, which are JSON types.

    Raises:
        DGemmaError: the template refuses the variables, fails, takes too long, or makes too large a text.
    """
    if source == _own():
        from mlx_dgemma.checkpoint import jinja_worker

        try:
            return jinja_worker.render(source, variables)
        except Exception as error:  # the messages may hold anything
            raise _refused(jinja_worker.told(error)) from None
    return _worker().render(source, variables)


@cache
def _own() -> str:
    return OWN.read_text(encoding="utf-8")


@cache
def _worker() -> Worker:
    return Worker()


def _refused(why: str) -> DGemmaError:
    return DGemmaError(f"the chat template refuses these messages: {why}")


def _too_large(size: int) -> DGemmaError:
    return DGemmaError(f"the chat template makes more than {size:,} characters; use another checkpoint's")


class Worker:
    """A process that renders templates, one at a time; started when it is needed, and again when it was stopped."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY, size: int = SIZE):
        self.seconds, self.memory, self.size = seconds, memory, size
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, source: str, variables: dict[str, Any]) -> str:
        """See `chat_template.render`."""
        try:
            request = json.dumps({"source": source, "variables": variables}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise _refused(f"they are not JSON ({error})") from None
        size = max(self.size, 4 * len(request))
        with self._lock:
            answer = self._ask(request, size)
        if "error" in answer:
            raise _refused(answer["error"])
        if len(answer["text"]) > size:
            raise _too_large(size)
        return answer["text"]

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, request: bytes, size: int) -> dict[str, str]:
        try:
            answer: dict[str, str] = json.loads(self._exchange(request, size))
            return answer
        except BaseException:  # a Ctrl-C as well: half an answer must not be the next one's beginning
            self.close()
            raise

    def _exchange(self, request: bytes, size: int) -> bytes:
        process, source, sink = self._start()
        deadline = time.monotonic() + self.seconds
        writer = threading.Thread(target=_send, args=(sink, request), daemon=True)  # it may wait for the reader
        writer.start()
        line, look_at = bytearray(), time.monotonic() + LOOK_AFTER
        while not line.endswith(b"\n"):
            now = time.monotonic()
            if now >= deadline:
                raise DGemmaError(f"the chat template took more than {self.seconds:g} s; use another checkpoint's")
            if now >= look_at:
                self._check_memory(process.pid)
                look_at = now + LOOK_AFTER
            ready, _, _ = select.select([source], [], [], min(deadline, look_at) - now)
            if ready:
                part = source.read1(1 << 20)
                if not part:
                    raise DGemmaError("the chat template ended the process that rendered it; use another checkpoint's")
                line += part
            if len(line) > 6 * size:  # as JSON, a character takes up to six bytes
                raise _too_large(size)
        return bytes(line)

    def _start(self) -> tuple[subprocess.Popen[bytes], BufferedReader, IO[bytes]]:
        """The process, what it writes, and what it reads."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-I", str(Path(__file__).with_name("jinja_worker.py"))]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env={},
                start_new_session=True,
            )  # fmt: skip
        process = self._process
        assert isinstance(process.stdout, BufferedReader) and process.stdin is not None  # both are pipes
        return process, process.stdout, process.stdin

    def _check_memory(self, pid: int) -> None:
        """Where the operating system does not bound a process's memory, somebody must look."""
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
        if told.strip().isdigit() and 1024 * int(told) > self.memory:
            raise DGemmaError(f"the chat template used more than {self.memory >> 20} MB; use another checkpoint's")


def _send(sink: IO[bytes], request: bytes) -> None:
    try:
        sink.write(request + b"\n")
        sink.flush()
    except OSError:
        pass  # it has ended, which the reader finds out
