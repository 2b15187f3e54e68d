"""The page: its files, read once, by their names; no path from a request reaches the file system."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_dgemma.server.errors import Refused
from mlx_dgemma.web import SHARED, STYLE, asset

INDEX = "page.html"
OWN = (
    "page.css", "page.js", "api.js", "canvas.js", "dialog.js", "files.js", "images.js", "markdown.js", "settings.js",
    "store.js", "turns.js",
)  # fmt: skip
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
POLICY = (  # nothing but its own files: no inline script or style, no other place, no frame around it
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asks each time whether it is still the same
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    tag: str


def page_routes() -> list[Route]:
    """`/` and `/assets/…`."""
    room = "mlx_dgemma.server"
    texts = {name: asset(name, room) for name in (INDEX, *OWN)} | {name: asset(name) for name in (STYLE, *SHARED)}
    made = {name: _file(name, text.encode()) for name, text in texts.items()}

    async def index(request: Request) -> Response:
        return _answer(request, made[INDEX])

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in made or name == INDEX:
            raise Refused(404, f"there is no {request.url.path[:80]!r} here")
        return _answer(request, made[name])

    return [Route("/", index), Route("/assets/{name}", file)]


def _file(name: str, content: bytes) -> _File:
    return _File(content, TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:20]}"')


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
