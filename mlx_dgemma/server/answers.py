"""What every surface adapts: the answer to some requests as one stream of parts, for streamed and whole answers alike.

The worker's thread tells; the parts wait here for whoever sends them on. Committed parts all come, in order; of drafts
only the newest waits, so that a slow reader gets no backlog.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.worker import Draft, Job, Told, Worker
from mlx_dgemma.text.events import Stats, TextCanvas
from mlx_dgemma.text.reply import ToolCall
from mlx_dgemma.text.request import Request


@dataclass(frozen=True)
class Part:
    """What a committed canvas adds to one of the texts; the last one has a reason and figures.

    Attributes:
        index: which text.
        text, thought: what they grow by.
        calls: that were finished.
        tokens, log_p, alternatives: of the answer, without thoughts and marks; nats; see `TextCanvas`.
        finish_reason: see `TextCanvas`; None if more comes.
        end: the whole text's figures, None if more comes.
    """

    index: int
    text: str
    thought: str
    calls: tuple[ToolCall, ...]
    tokens: Sequence[int]
    log_p: Sequence[float]
    alternatives: Sequence[Sequence[tuple[int, float]]]
    finish_reason: str | None
    end: End | None


@dataclass(frozen=True)
class End:
    """Figures of a text.

    Attributes:
        steps: denoising steps by canvas.
        stats: see `Stats`.
        seed: of its noise.
        fault: why it has not the form that was asked for.
        stop_text: which of the stop texts ended it, "" if none did.
    """

    steps: Sequence[int]
    stats: Stats
    seed: int
    fault: str
    stop_text: str = ""

    def about(self) -> dict[str, Any]:
        """The `diffusion` object of a last chunk, or of a whole answer."""
        stats = self.stats
        made: dict[str, Any] = {
            "canvases": stats.canvases,
            "steps": list(self.steps),
            "tokens_per_forward": round(stats.tokens_per_forward, 2),
            "work": round(stats.work, 4),
            "prefill_seconds": round(stats.prompt_seconds, 4),
            "denoise_seconds": round(stats.seconds, 4),
            "seed": self.seed,
        }
        if stats.image_tokens:
            made |= {"image_tokens": list(stats.image_tokens), "image_seconds": round(stats.image_seconds, 4)}
        return made | ({"warning": self.fault} if self.fault else {})


@dataclass(frozen=True)
class Sketch:
    """A denoising step of one of the texts; what it shows replaces what was shown of that canvas before."""

    index: int
    draft: Draft


class Behind:
    """What of a text, as it grows, stands behind a beginning that the client has."""

    def __init__(self, beginning: str):
        self._left = len(beginning)

    def add(self, text: str) -> str:
        """What is new of the next part."""
        skipped, self._left = self._left, max(0, self._left - len(text))
        return text[skipped:]


class Answer:
    """The texts of some requests, as they come; `cancel` it when nobody listens any more."""

    def __init__(self, worker: Worker, requests: Sequence[Request], *, drafts: bool = False):
        self._loop = asyncio.get_running_loop()
        self._parts: deque[Part | Refused] = deque()
        self._sketch: Sketch | None = None
        self._arrived = asyncio.Event()
        self._steps: list[list[int]] = [[] for _ in requests]
        self._requests = requests
        self.prompt_tokens: list[int | None] = [None] * len(requests)
        self.ended = 0
        self._jobs = [Job(request, self._teller(i), drafts) for i, request in enumerate(requests)]
        worker.submit(self._jobs)

    def cancel(self) -> None:
        """Ends what goes on, between two steps."""
        for job in self._jobs:
            job.cancel()

    async def admitted(self) -> None:
        """Waits until it is sure that all of it can be done.

        Raises:
            Refused: what cannot.
        """
        while None in self.prompt_tokens:
            if self._parts and isinstance(self._parts[0], Refused):
                self.cancel()
                raise self._parts[0]
            await self._wait()

    async def parts(self, silence: float | None = None) -> AsyncIterator[Part | Sketch | None]:
        """The parts of all texts, and drafts between them; None after so many seconds in which nothing came.

        Raises:
            Refused: something went wrong on the way.
        """
        while self.ended < len(self._requests) or self._parts:
            if self._parts:
                part = self._parts.popleft()
                if isinstance(part, Refused):
                    self.cancel()
                    raise part
                yield part
            elif self._sketch is not None:
                sketch, self._sketch = self._sketch, None
                yield sketch
            elif not await self._wait(silence):
                yield None

    async def _wait(self, seconds: float | None = None) -> bool:
        """Until something arrives; whether it did in time."""
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return False
        self._arrived.clear()
        return True

    def _teller(self, index: int) -> Any:
        """What the worker's thread calls for one of the texts."""

        def tell(told: Told) -> None:
            self._loop.call_soon_threadsafe(self._take, index, told)

        return tell

    def _take(self, index: int, told: Told) -> None:
        """Takes what happened to a text; in the loop's thread."""
        if isinstance(told, int):
            self.prompt_tokens[index] = told
        elif isinstance(told, Draft):
            self._sketch = Sketch(index, told)
        elif isinstance(told, Refused):
            self.ended += 1
            self._parts.append(told)
        else:
            self._parts.append(self._part(index, told))
            self.ended += told.finish_reason is not None
            if self._sketch is not None and self._sketch.index == index:
                self._sketch = None  # what is committed supersedes it
        self._arrived.set()

    def _part(self, index: int, canvas: TextCanvas) -> Part:
        self._steps[index].append(canvas.steps)
        end = None
        if canvas.finish_reason is not None:
            seed = self._requests[index].seed
            end = End(self._steps[index], canvas.stats, seed, canvas.fault, canvas.stop_text)
        said = canvas.spoken
        return Part(
            index=index,
            text=canvas.text,
            thought=canvas.thought,
            calls=canvas.tool_calls,
            tokens=[canvas.tokens[i] for i in said],
            log_p=[canvas.log_p[i] for i in said],
            alternatives=[canvas.alternatives[i] for i in said] if canvas.alternatives else (),
            finish_reason=canvas.finish_reason,
            end=end,
        )
