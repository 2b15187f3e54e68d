"""The application: paths, and from each one's body to its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.server import responses as stateless
from mlx_dgemma.server import sse
from mlx_dgemma.server.answers import Answer, Part
from mlx_dgemma.server.asking import Asked
from mlx_dgemma.server.bodies import parsed
from mlx_dgemma.server.chat import Chat
from mlx_dgemma.server.completions import Completion, detokenized, tokenized
from mlx_dgemma.server.errors import Refused, refusal
from mlx_dgemma.server.guard import Guard, Rules
from mlx_dgemma.server.messages import PING, Messages, failed
from mlx_dgemma.server.metrics import TYPE, metrics
from mlx_dgemma.server.page import page_routes
from mlx_dgemma.server.service import STARTED, Service
from mlx_dgemma.server.surface import Asking
from mlx_dgemma.server.systemone import answered, questions_of
from mlx_dgemma.text import request as texts
from mlx_dgemma.text.engine import Engine

LOOK = 0.2  # seconds between looks at whether a client that waits for a whole answer is still there
GONE = 499  # nobody reads it
T = TypeVar("T")
log = logging.getLogger("mlx_dgemma.server")


def create_app(service: Service, rules: Rules, *, is_metered: bool = False) -> Guard:
    """The application of a service, behind its guard; `is_metered` adds /metrics."""
    surface = _Surfaces(service)
    routes = [
        *page_routes(),
        Route("/health", surface.health),
        Route("/v1/models", surface.models),
        Route("/v1/models/{name:path}", surface.model),
        Route("/v1/chat/completions", _posted(surface.chat), methods=["POST"]),
        Route("/v1/completions", _posted(surface.completions), methods=["POST"]),
        Route("/v1/responses", _posted(surface.responses), methods=["POST"]),
        Route("/v1/messages", _posted(surface.messages), methods=["POST"]),
        Route("/v1/messages/count_tokens", _posted(surface.count), methods=["POST"]),
        Route("/v1/systemone", _posted(surface.systemone), methods=["POST"]),
        Route("/v1/tokenize", _posted(surface.tokenize), methods=["POST"]),
        Route("/v1/detokenize", _posted(surface.detokenize), methods=["POST"]),
    ]
    if is_metered:
        routes.append(Route("/metrics", surface.metrics))
    handlers: dict[Any, Any] = {Refused: _refused, HTTPException: _unknown, Exception: _failed}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), rules)


def _posted(
    handle: Callable[[Request, dict[str, Any]], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Reads the body before the handler, and logs what came of it: sizes and times, no texts."""

    async def handler(request: Request) -> Response:
        began, size, status = time.perf_counter(), 0, GONE
        try:
            body = await request.body()
            size = len(body)
            response = await handle(request, parsed(body))
            status = response.status_code
        except ClientDisconnect:
            return Response(status_code=GONE)
        except Refused as error:
            status = error.status
            raise
        finally:
            seconds = time.perf_counter() - began
            log.info("%s %s: %d bytes, %.2f s, %d", request.method, request.url.path, size, seconds, status)
        return response

    return handler


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.at(request.url.path), error.status, headers=error.headers)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    what = f"there is no {path!r} here" if error.status_code == 404 else f"{path!r} does not take {request.method}"
    return await _refused(request, Refused(error.status_code, what))


async def _failed(request: Request, error: Exception) -> Response:
    """An error of ours, of which the log has the rest."""
    return await _refused(request, Refused(500, f"the server failed: {type(error).__name__}"))


class _Surfaces:
    """The handlers."""

    def __init__(self, service: Service):
        self.service = service

    async def health(self, request: Request) -> Response:
        """Whether the model's thread lives."""
        worker = self.service.worker
        if not worker.is_alive:
            return JSONResponse({"status": "dead"}, 503)
        return JSONResponse({"status": "ok", "waiting": worker.waiting})

    async def metrics(self, request: Request) -> Response:
        """What was done so far."""
        return Response(metrics(self.service.worker), media_type=TYPE)

    async def models(self, request: Request) -> Response:
        """What is served; Codex reads a list of its own."""
        rows = [self._row(name) for name in self.service.names]
        return JSONResponse({"object": "list", "data": rows, "models": rows})

    async def model(self, request: Request) -> Response:
        """One of them."""
        return JSONResponse(self._row(self.service.named(request.path_params["name"])))

    def _row(self, name: str) -> dict[str, Any]:
        context, seen = self.service.context, self.service.modalities
        return {
            "id": name, "slug": name, "object": "model", "created": STARTED, "owned_by": "mlx-dgemma",
            "context_length": context, "max_model_len": context, "context_window": context,
            "input_modalities": seen, "architecture": {"input_modalities": seen, "output_modalities": ["text"]},
        }  # fmt: skip

    async def chat(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/chat/completions."""
        return await self._answered(request, Chat.of(self.service, body), _openai_event)

    async def completions(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/completions."""
        return await self._answered(request, Completion.of(self.service, body), _openai_event)

    async def messages(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/messages."""
        return await self._answered(request, Messages.of(self.service, body), failed, PING)

    async def responses(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/responses."""
        return await self._answered(request, stateless.Response.of(self.service, body), stateless.failed)

    async def count(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/messages/count_tokens."""
        (asked,) = await self._requests(Messages.of(self.service, body).asked)
        return JSONResponse({"input_tokens": await self._done(lambda engine: len(engine.prepare(asked).ids))})

    async def systemone(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/systemone."""
        questions = questions_of(self.service, body)
        answers, tokens = await self._done(lambda engine: answered(engine, questions))
        usage = {"input_tokens": tokens, "output_tokens": 0}
        return JSONResponse({"model": self.service.name, "answers": answers, "usage": usage})

    async def _done(self, work: Callable[[Engine], T]) -> T:
        """What something short gives, done in the worker's thread between two units of work."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def tell(made: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(lambda: None if done.done() else made())

        def do(engine: Engine) -> None:
            try:
                found = work(engine)
            except DGemmaError as error:
                refused = refusal(error)
                tell(lambda: done.set_exception(refused))
            else:
                tell(lambda: done.set_result(found))

        self.service.worker.call(do)
        return await done

    async def tokenize(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/tokenize."""
        return JSONResponse(tokenized(self.service, body))

    async def detokenize(self, request: Request, body: dict[str, Any]) -> Response:
        """/v1/detokenize."""
        return JSONResponse(detokenized(self.service, body))

    async def _answered(
        self, request: Request, asking: Asking, failed: Callable[[Refused], str],
        silence: str = sse.STILL_HERE,
    ) -> Response:  # fmt: skip
        """The answer of a surface, streamed or whole, once it is sure that there can be one."""
        asked = asking.asked
        requests = await while_there(request, None, self._requests(asked))
        answer = self.service.answer(requests, drafts=bool(asked.drafts and asking.is_stream))
        await while_there(request, answer, answer.admitted())
        if not asking.is_stream:
            return JSONResponse(asking.whole(await whole(request, answer), answer))
        made = asking.streamed(answer)
        events = sse.events(answer, made.chunks, before=made.before(), after=made.after, failed=failed, silence=silence)
        return sse.stream(events)

    async def _requests(self, asked: Asked) -> list[texts.Request]:
        """What the engine gets, its images decoded."""
        service = self.service
        asked.messages = service.conversation(asked.messages)
        if service.images.check(asked.messages):
            asked.messages = await service.images.decode(asked.messages, service.eyes(), asked.image_tokens)
        return asked.requests(service)


def _openai_event(error: Refused) -> str:
    return sse.data(error.as_openai()) + sse.DONE


async def whole(request: Request, answer: Answer) -> list[Part]:
    """All parts of an answer, unless the client goes away."""

    async def collect() -> list[Part]:
        return [part async for part in answer.parts() if isinstance(part, Part)]

    return await while_there(request, answer, collect())


async def while_there(request: Request, answer: Answer | None, work: Awaitable[T]) -> T:
    """Waits for something as long as the client does; cancels it, and the answer, otherwise.

    Raises:
        ClientDisconnect: the client went away.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK)
            if not task.done() and await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    except BaseException:
        task.cancel()
        if answer is not None:
            answer.cancel()
        raise
