"""Who may ask, and how much: looked at before a byte of the body is read."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.server.errors import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
BODY = 32 << 20  # bytes
SMALL, WAIT = 1 << 20, 0.3  # bytes and seconds of a body that is not wanted
SLOW = 30.0  # seconds that a body may take to arrive
OPEN = ("/", "/health")  # need no key: the page's own files, and whether the server is well
ASSETS = "/assets/"
METHODS = "GET, POST, OPTIONS"


@dataclass(frozen=True)
class Rules:
    """What is let in.

    Attributes:
        hosts: names under which the server may be asked, without ports.
        origins: of pages beside its own that may ask.
        keys: of which one has to be given; none needs none.
    """

    hosts: frozenset[str] = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ()


class Guard:
    """ASGI middleware that refuses what the rules do not let in."""

    def __init__(self, app: App, rules: Rules):
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        origin = headers.get("origin")
        try:
            self._check_host(headers)
            allowed = self._allowed_origin(origin, headers, scope)
            cors = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"} if allowed and origin else {}
            if scope["method"] == "OPTIONS" and origin is not None:
                await _answer(send, 204, b"", cors | _preflight(headers))
                return
            self._check_key(scope["path"], headers)
            _check_length(headers)
        except Refused as error:
            await _discard(receive)
            await refuse(send, error, scope["path"])
            return
        await self.app(scope, _limited(receive), _with_headers(send, cors))

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in self.rules.hosts:
            raise Refused(403, f"the host {host[:80]!r} is not this server's; start it with --allow-host for others")

    def _allowed_origin(self, origin: str | None, headers: dict[str, str], scope: Scope) -> bool:
        """Whether it is another page's origin that may ask."""
        if origin is None or origin.lower() == f"{scope.get('scheme', 'http')}://{headers.get('host', '')}".lower():
            return False
        if origin not in self.rules.origins:
            raise Refused(
                403, f"pages of {origin[:80]!r} may not ask here; start the server with --allow-origin for them"
            )
        return True

    def _check_key(self, path: str, headers: dict[str, str]) -> None:
        if not self.rules.keys or path in OPEN or path.startswith(ASSETS):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        matches = [hmac.compare_digest(given.encode(), key.encode()) for key in self.rules.keys]
        if not any(matches):
            raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")


def _check_length(headers: dict[str, str]) -> None:
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length[:20]) > BODY:
        raise Refused(413, f"the body has {length[:20]} bytes; at most {BODY} are taken")


def _limited(receive: Receive) -> Receive:
    """Receives a body up to its limits, and whatever comes behind it without any."""
    read, is_over, deadline = 0, False, asyncio.get_running_loop().time() + SLOW

    async def limited() -> Message:
        nonlocal read, is_over
        if is_over:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise Refused(408, f"the body took longer than {SLOW:g} seconds") from None
        read += len(message.get("body", b""))
        if read > BODY:
            raise Refused(413, f"the body has more than {BODY} bytes")
        is_over = not message.get("more_body", False)
        return message

    return limited


async def _discard(receive: Receive) -> None:
    """Lets go of a body, if it is small and there: a connection that is closed over one loses the answer too."""
    read = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT):
            while read < SMALL:
                message = await receive()
                read += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _with_headers(send: Send, cors: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = {"X-Content-Type-Options": "nosniff", **cors}
            own = [(key.lower().encode(), value.encode("latin-1")) for key, value in more.items()]
            message["headers"] = [*message.get("headers", []), *own]
        await send(message)

    return sending


def _preflight(headers: dict[str, str]) -> dict[str, str]:
    asked = headers.get("access-control-request-headers", "authorization, content-type")
    return {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": "600",
    }


async def refuse(send: Send, error: Refused, path: str) -> None:
    """Answers with the error object of the surface that a path belongs to."""
    headers = {"Content-Type": "application/json", "Connection": "close", **error.headers}
    await _answer(send, error.status, json.dumps(error.at(path), ensure_ascii=False).encode(), headers)


async def _answer(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    own = [(key.lower().encode(), value.encode("latin-1")) for key, value in headers.items()]
    own.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})
