"""Server-sent events: chunks as they come, a word in every silence, an end to the work when the reader goes away."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from starlette.responses import StreamingResponse

from mlx_dgemma.server.answers import Answer, Part, Sketch
from mlx_dgemma.server.errors import Refused

SILENCE = 5.0  # seconds after which a comment is sent, so that no client takes the silence for death
STILL_HERE = ": still here\n\n"
DONE = "data: [DONE]\n\n"
Chunks = Callable[[Part | Sketch], Iterable[str]]


def data(value: dict[str, Any], event: str | None = None) -> str:
    """One event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def events(
    answer: Answer, chunks: Chunks, *, before: Iterable[str], after: Callable[[], Iterable[str]],
    failed: Callable[[Refused], str], silence: str = STILL_HERE,
) -> AsyncIterator[bytes]:  # fmt: skip
    """The stream of an answer.

    Args:
        answer: what is sent.
        chunks: makes events of its parts.
        before, after: events around them; `after` are made when all parts are there.
        failed: makes one of what went wrong on the way.
        silence: sent where there is nothing to say.
    """
    try:
        for text in before:
            yield text.encode()
        async for part in answer.parts(SILENCE):
            for text in [silence] if part is None else chunks(part):
                yield text.encode()
        for text in after():
            yield text.encode()
    except Refused as error:
        yield failed(error).encode()
    finally:
        answer.cancel()


def stream(body: AsyncIterator[bytes]) -> StreamingResponse:
    """The response that sends it, which nothing on the way may hold back."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)
