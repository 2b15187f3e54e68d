"""Putting it together: the worker's engine, the application, and the process that listens."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_dgemma.distributed.plan import Plan
from mlx_dgemma.distributed.relay import follow
from mlx_dgemma.distributed.session import Session
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.server.app import create_app
from mlx_dgemma.server.guard import LOOPBACK, Guard, Rules
from mlx_dgemma.server.images import Decoder
from mlx_dgemma.server.service import Service
from mlx_dgemma.server.worker import Worker
from mlx_dgemma.terminal.start import load_engine, share
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.prefixes import PrefixStore
from mlx_dgemma.text.request import MAX_IMAGES, MAX_ROWS

HEAD = 10.0  # seconds that a request's head may take to arrive
HEADERS = 64 << 10  # bytes of them
STALLED = 60.0  # seconds in which a reader takes nothing of what waits for it
CONNECTIONS = 256
JOIN = 0.5  # seconds between looks at whether a signal came
DRAIN = 20  # seconds that running answers get when the server is told to stop


@dataclass(frozen=True)
class Options:
    """What is served, to whom, and how much at a time; see `dgemma-server --help`."""

    model: str | None = None
    dtype: str | None = None
    wire: bool = True
    host: str = "127.0.0.1"
    port: int = 0
    keys: tuple[str, ...] = ()
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    context: int | None = None
    prefix_bytes: int | None = None
    queue: int = 32
    max_batch: int = MAX_ROWS
    quiet: bool = True
    metrics: bool = False
    max_images: int = MAX_IMAGES
    distributed: Plan | None = None


def build(options: Options, session: Session | None = None) -> tuple[Guard, Service]:
    """The application, with its engine loaded and its worker at work, alone or as the first of several ranks.

    Raises:
        DGemmaError: as loading does; a checkpoint without a tokenizer.
    """

    def load() -> Engine:
        return _load(options, session)

    exchange = None if session is None else session.exchange
    worker = Worker(
        load, max_rows=options.max_batch, queue=options.queue, context=options.context, exchange=exchange
    )  # fmt: skip
    engine = worker.start()
    most = engine.model.config.max_position_embeddings
    if engine.tokenizer is None:
        worker.stop()
        raise DGemmaError("the checkpoint has no tokenizer files, and a server takes texts; add tokenizer.json")
    if options.context is not None and not 2 * engine.model.config.canvas_length <= options.context <= most:
        worker.stop()
        least = 2 * engine.model.config.canvas_length
        raise DGemmaError(f"--context takes {least} to {most} tokens for this checkpoint, got {options.context}")
    service = Service(
        worker, engine, engine.checkpoint.rstrip("/"), options.context or most, Decoder(options.max_images)
    )
    hosts = {*LOOPBACK, *(name.lower() for name in options.allow_host), options.host.lower()} - {"0.0.0.0", "::", ""}
    rules = Rules(frozenset(hosts), frozenset(options.allow_origin), options.keys)
    return create_app(service, rules, is_metered=options.metrics), service


def _load(options: Options, session: Session | None) -> Engine:
    """The engine, with what it remembers; shared with other ranks if there are any."""
    engine = load_engine(options.model, options.dtype, wire=options.wire, quiet=options.quiet)
    if session is not None:
        share(session, engine, options.model, quiet=options.quiet or not session.is_first)
    return replace(engine, prefixes=PrefixStore(options.prefix_bytes))


def work_along(options: Options, session: Session) -> None:
    """Any rank but the first: does what that tells, in a thread, as no signal reaches one that waits for others."""
    failed: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            engine = _load(options, session)
            follow(engine.prepare, session.exchange, max_rows=options.max_batch, context=options.context)
        except BaseException as error:  # it is raised below
            failed.append(error)
        done.set()
        threading.Event().wait()  # as in `Worker`: now and then MLX aborts where a thread of its streams ends

    threading.Thread(target=work, name="mlx", daemon=True).start()
    while not done.wait(JOIN):
        pass
    if failed:
        raise failed[0]


def serve(options: Options, say: Callable[[str], None], session: Session | None = None) -> None:
    """Serves until a signal comes; then running answers get some seconds to end.

    Raises:
        DGemmaError: as `build`; an address that cannot be listened at.
    """
    bound = _bound(options.host, options.port)
    try:
        app, service = build(options, session)
        _log(quiet=options.quiet)
        port = bound.getsockname()[1]
        bound.listen()  # who comes before uvicorn does waits for it
        say(f"{service.name} at http://{options.host}:{port} (Ctrl-C stops)")
        server = uvicorn.Server(configured(app))
        try:
            server.run([bound])
        finally:
            service.worker.stop()
    finally:
        bound.close()


def configured(app: Guard) -> uvicorn.Config:
    """How uvicorn runs it."""
    return uvicorn.Config(
        app, http=Patient, log_config=None, access_log=False, server_header=False, lifespan="off",
        limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=HEADERS, timeout_graceful_shutdown=DRAIN,
    )  # fmt: skip


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise DGemmaError(f"{host}:{port} cannot be listened at ({error}); give another --port or --host") from None
    return bound


def _log(*, quiet: bool) -> None:
    """A line for each request on stderr: sizes and times."""
    logger = logging.getLogger("mlx_dgemma.server")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.propagate = False


class Patient(H11Protocol):
    """Waits only so long for a head, and for a reader that takes nothing: both would hold a connection forever."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a socket
        super().connection_made(transport)
        self._expect()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._unexpect()
        elif self._deadline is None:
            self._expect()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        self._read_on()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unexpect()
        self._read_on()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(HEAD, self._give_up)

    def _unexpect(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _read_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
