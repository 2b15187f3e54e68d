"""What every surface that writes has: a request, from its body to its answer, whole or as events."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from mlx_dgemma.server.answers import Answer, Part, Sketch
from mlx_dgemma.server.asking import Asked
from mlx_dgemma.server.bodies import Fields
from mlx_dgemma.server.service import Service


class Events(Protocol):
    """Makes events of an answer's parts."""

    def before(self) -> Iterator[str]:
        """Those that come first."""

    def chunks(self, part: Part | Sketch) -> Iterator[str]:
        """What a part adds."""

    def after(self) -> Iterator[str]:
        """Those that come last, when all parts are there."""


@dataclass(kw_only=True)
class Asking(ABC):
    """One request of a surface.

    Attributes:
        service: answers it.
        model: the name to answer with.
        asked: what it asks for.
        is_stream: whether the answer comes as events.
        wants_usage: whether these end with what it took.
        identity, created: of the answer.
    """

    PREFIX: ClassVar[str]  # of identities
    service: Service
    model: str
    asked: Asked
    is_stream: bool = False
    wants_usage: bool = False
    identity: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.identity = named(self.PREFIX)

    @abstractmethod
    def whole(self, parts: Iterable[Part], answer: Answer) -> dict[str, Any]:
        """The whole answer."""

    @abstractmethod
    def streamed(self, answer: Answer) -> Events:
        """What makes events of it."""


def named(prefix: str) -> str:
    """A name that nothing else has."""
    return f"{prefix}{uuid.uuid4().hex[:24]}"


def streaming(fields: Fields) -> dict[str, bool]:
    """Whether a body asks for events, and for what it took at their end."""
    options = fields.fields("stream_options")
    usage = bool(options and options.flag("include_usage"))
    return {"is_stream": bool(fields.flag("stream")), "wants_usage": usage}
