"""A server on several ranks: the first one takes requests in, and tells the others of each before it goes on.

What every rank does follows from what it was told, in which order: so all are in the same step of the same texts.
"""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.distributed.exchange import Exchange
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.images import Picture
from mlx_dgemma.text.request import MAX_ROWS, CanvasPlan, Request
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.scheduler import Happened, Scheduler

_PLAIN = (
    "seed", "chat_template", "thinking", "tools", "tool_choice", "parallel_tool_calls", "stop", "response_format",
    "alternatives", "mode", "causal_log_p", "image_tokens", "repair",
)  # fmt: skip


class Leading(Scheduler):
    """The first rank's scheduler: what it does, `follow` does on the others."""

    def __init__(
        self, prepare: Callable[[Request], Run], exchange: Exchange, *, max_rows: int = MAX_ROWS,
        context: int | None = None,
    ):  # fmt: skip
        super().__init__(prepare, max_rows=max_rows, context=context)
        self._exchange, self._untold = exchange, list[list[Any]]()

    def add(self, request: Request) -> tuple[int, int]:
        self._untold.append(["add", as_json(request)])
        return super().add(request)

    def cancel(self, ticket: int) -> None:
        self._untold.append(["cancel", ticket])
        super().cancel(ticket)

    def advance(self) -> list[Happened]:
        self._tell()
        return super().advance()

    def close(self) -> None:
        """The others are told that nothing more comes."""
        self._untold.append(["end", None])
        self._tell()

    def _tell(self) -> None:
        told, self._untold = self._untold, []
        self._exchange.from_first(json.dumps(told).encode() if told else b"")


def leading(
    prepare: Callable[[Request], Run], exchange: Exchange | None, *, max_rows: int, context: int | None
) -> Scheduler:  # fmt: skip
    """The scheduler of one process alone, where there is nobody to tell, or of the first rank."""
    if exchange is None:
        return Scheduler(prepare, max_rows=max_rows, context=context)
    return Leading(prepare, exchange, max_rows=max_rows, context=context)


def follow(
    prepare: Callable[[Request], Run], exchange: Exchange, *, max_rows: int = MAX_ROWS, context: int | None = None
) -> None:
    """Works along with the first rank until it is told to end.

    Raises:
        Exception: whatever fails here and not there, as memory may.
    """
    scheduler = Scheduler(prepare, max_rows=max_rows, context=context)
    while True:
        for what, argument in json.loads(exchange.from_first(b"") or b"[]"):
            if what == "end":
                return
            if what == "cancel":
                scheduler.cancel(argument)
                continue
            with suppress(DGemmaError):  # which the first rank has told its client
                scheduler.add(of_json(argument))
        for _, event in scheduler.advance():
            if isinstance(event, Exception) and not isinstance(event, DGemmaError):
                raise event


def as_json(request: Request) -> dict[str, Any]:
    """A request as values of JSON, images and all.

    Raises:
        DGemmaError: a noise source or a strategy, which only Python has.
    """
    settings = {name: getattr(request.settings, name) for name in sorted(request.settings.given)}
    if request.noise is not None or request.images or not _is_plain(settings):
        raise DGemmaError("a request with a noise source or strategies of its own cannot be told to other ranks")
    plan, pictures = request.plan, list[list[Any]]()
    return {
        **{name: getattr(request, name) for name in _PLAIN},
        "prompt": _without_pictures(request.prompt, [], pictures),
        "pictures": pictures,
        "settings": settings,
        "canvas": {own.name: getattr(plan, own.name) for own in fields(plan)},
    }


def of_json(told: dict[str, Any]) -> Request:
    """The request of `as_json`."""
    plain = dict(told)
    prompt, pictures = plain.pop("prompt"), plain.pop("pictures")
    for path, known in pictures:
        place = prompt
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = _picture(known)
    settings, plan = GenerationConfig(**plain.pop("settings")), CanvasPlan(**plain.pop("canvas"))
    return Request(prompt, settings=settings, canvas=plan, **plain)


def _is_plain(settings: dict[str, Any]) -> bool:
    return all(isinstance(own, str | int | float | list | None) for own in settings.values())


def _without_pictures(value: Any, path: list[Any], found: list[list[Any]]) -> Any:
    """A prompt without its pictures, which are added to `found` with the paths to where they stood."""
    if isinstance(value, Picture):
        known = {own.name: getattr(value, own.name) for own in fields(value) if own.name != "pixels"}
        pixels = base64.b64encode(value.pixels.tobytes()).decode("ascii")
        found.append([path, {**known, "pixels": pixels, "shape": value.pixels.shape}])
        return None
    if isinstance(value, dict):
        return {key: _without_pictures(own, [*path, key], found) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_without_pictures(own, [*path, i], found) for i, own in enumerate(value)]
    return value


def _picture(known: dict[str, Any]) -> Picture:
    shape, pixels = known.pop("shape"), base64.b64decode(known.pop("pixels"))
    return Picture(pixels=np.frombuffer(pixels, np.uint8).reshape(shape), **known)
