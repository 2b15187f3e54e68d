"""Ranks that end together: one that dies, hangs or is interrupted ends the others within ten seconds.

A rank that waits in a collective waits in MLX, where no exception and no signal reaches it, and not every backend tells
it that the one it waits for is gone. So beside MLX every rank holds a connection to rank 0 over which it says once a
second that it lives, and at last how it ended.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from mlx_dgemma.errors import DGemmaError

BEAT = 1.0  # seconds between two signs of life
SILENCE = 7.0  # seconds without one, after which a rank is taken for dead
GRACE = 2.0  # seconds in which this rank may end by itself, once another has
MEET = 20.0  # seconds until all are connected
ALIVE, DONE, FAILED = b".", b"done", b"failed"
Address = tuple[str, int, str]  # host, port, and what proves that a connection is one of ours


class Watchdog:
    """One rank's connection, or, at rank 0, those of all others; `fail(line)` is called in a thread, at most once."""

    def __init__(self, fail: Callable[[str], None]):
        self._fail = fail
        self._lock = threading.Lock()
        self._peers: dict[int, socket.socket] = {}
        self._has_ended = self._has_failed = False

    def listen(self, host: str, size: int) -> tuple[Address, Callable[[], None]]:
        """At rank 0: where the others are to connect, and what waits until they have."""
        token = secrets.token_hex(16)
        server = socket.create_server(("", 0))
        server.settimeout(MEET)

        def meet() -> None:
            try:
                while len(self._peers) < size - 1:
                    connection, _ = server.accept()
                    connection.settimeout(MEET)
                    said, _, rank = _line(connection).partition(" ")
                    if secrets.compare_digest(said, token) and rank.isdecimal() and 0 < int(rank) < size:
                        self._watch(int(rank), connection)
            except OSError:
                missing = sorted(set(range(1, size)) - self._peers.keys())
                told = ", ".join(map(str, missing))
                raise DGemmaError(f"rank {told} did not connect to port {server.getsockname()[1]} of rank 0") from None
            finally:
                server.close()

        return (host, server.getsockname()[1], token), meet

    def connect(self, address: Address, rank: int) -> None:
        """At any other rank."""
        host, port, token = address
        try:
            connection = socket.create_connection((host, port), MEET)
            connection.sendall(f"{token} {rank}\n".encode())
        except OSError as error:
            raise DGemmaError(f"rank {rank} cannot reach port {port} of rank 0 at {host} ({error.strerror})") from None
        self._watch(0, connection)

    def close(self, failure: str | None = None) -> None:
        """This rank ends; `failure` says why the others must."""
        with self._lock:
            self._has_ended = True
            peers = list(self._peers.values())
        for peer in peers:
            with suppress(OSError):
                peer.sendall(b"\n" + (DONE if failure is None else FAILED + b" " + failure.encode()) + b"\n")
                peer.shutdown(socket.SHUT_WR)

    def _watch(self, rank: int, connection: socket.socket) -> None:
        connection.settimeout(SILENCE)
        with self._lock:
            self._peers[rank] = connection
        for work in (self._beat, self._hear):
            threading.Thread(target=work, args=(rank, connection), name="watchdog", daemon=True).start()

    def _beat(self, rank: int, connection: socket.socket) -> None:
        with suppress(OSError):
            while not self._has_ended:
                connection.sendall(ALIVE)
                time.sleep(BEAT)

    def _hear(self, rank: int, connection: socket.socket) -> None:
        """Reads until the other's end, and tells what it means for this rank."""
        said = b""
        try:
            while piece := connection.recv(4096):
                said = (said + piece).lstrip(ALIVE)
        except TimeoutError:
            self._end(rank, f"rank {rank} has not been heard of for {SILENCE:.0f} s")
            return
        except OSError:
            pass
        last = said.strip(ALIVE + b"\n")
        if last.startswith(FAILED):
            self._end(rank, last.removeprefix(FAILED + b" ").decode("utf-8", "replace"), GRACE)
        elif last != DONE:
            self._end(rank, f"rank {rank} has died")
        else:  # what both do ends at about the same time, or this one waits for something that will not come
            self._end(rank, f"rank {rank} has ended before this one", SILENCE)

    def _end(self, rank: int, line: str, after: float = 0.0) -> None:
        """Fails, unless this rank ends by itself in so many seconds; rank 0 tells the others."""
        until = time.monotonic() + after
        while time.monotonic() < until:
            if self._has_ended:
                return
            time.sleep(0.05)
        with self._lock:
            if self._has_ended or self._has_failed:
                return
            self._has_failed = True
            others = [peer for other, peer in self._peers.items() if other != rank]
        for peer in others:
            with suppress(OSError):
                peer.sendall(b"\n" + FAILED + b" " + line.encode() + b"\n")
                peer.shutdown(socket.SHUT_WR)
        self._fail(line)


def _line(connection: socket.socket) -> str:
    said = b""
    while not said.endswith(b"\n") and len(said) < 100 and (piece := connection.recv(1)):
        said += piece
    return said.decode("ascii", "replace").strip()


def end_process(line: str) -> None:
    """The last resort, from any thread: a line, and the end."""
    with suppress(OSError):
        os.write(2, f"error: {line}; all ranks end together\n".encode())
    os._exit(1)
