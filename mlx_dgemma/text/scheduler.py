"""Several requests at a time over one engine: a unit of work of each, in turn, so that none waits for another's end."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from mlx_dgemma.diffusion.canvas import DenoisingStep
from mlx_dgemma.errors import ContextOverflow, DGemmaError
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.generation import stream_text
from mlx_dgemma.text.request import Request
from mlx_dgemma.text.run import Run

Event = DenoisingStep | TextCanvas
Happened = tuple[int, Event | Exception]


class Scheduler:
    """Requests in the order in which they came; at most `max_rows` are begun, the others wait."""

    def __init__(self, engine: Engine, *, max_rows: int = 4, context: int | None = None):
        """`context`: positions that a prompt and its answer may take together; by default what the model has."""
        if max_rows < 1:
            raise DGemmaError(f"at least one text has to be written at a time, got {max_rows}")
        self.engine, self.max_rows, self.context = engine, max_rows, context
        self._waiting: deque[tuple[int, Run]] = deque()
        self._begun: deque[tuple[int, Iterator[Event]]] = deque()
        self._tickets = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._begun

    def add(self, request: Request) -> tuple[int, int]:
        """Takes a request in; its ticket, and how many tokens its prompt has.

        Raises:
            DGemmaError: as `Engine.stream`, for what cannot be done.
        """
        if request.samples != 1:
            raise DGemmaError(f"{request.samples} samples were asked for; give a request to each")
        run = self._within(self.engine.prepare(request))
        self._tickets += 1
        self._waiting.append((self._tickets, run))
        return self._tickets, len(run.ids)

    def _within(self, run: Run) -> Run:
        """A run whose answer ends with the context."""
        if self.context is None:
            return run
        room = self.context - len(run.ids)
        if room < run.model.config.canvas_length:
            raise ContextOverflow(
                f"the prompt has {len(run.ids)} tokens; with one canvas of {run.model.config.canvas_length} that "
                f"exceeds the context of {self.context}; shorten it"
            )
        return replace(run, settings=replace(run.settings, max_new_tokens=min(run.settings.max_new_tokens, room)))

    def cancel(self, ticket: int) -> None:
        """Nothing more comes for a ticket."""
        self._waiting = deque(own for own in self._waiting if own[0] != ticket)
        for own in [own for own in self._begun if own[0] == ticket]:
            self._begun.remove(own)
            own[1].close()  # type: ignore[attr-defined]  # a generator

    def advance(self) -> list[Happened]:
        """One unit of work: a denoising step, or what lies between two of them; what happened, by ticket.

        A `TextCanvas` with a `finish_reason` and an error are the last of their ticket.
        """
        while self._waiting and len(self._begun) < self.max_rows:
            ticket, run = self._waiting.popleft()
            self._begun.appendleft((ticket, stream_text(run)))  # the newest first: it has waited for its first canvas
        if not self._begun:
            return []
        ticket, stream = self._begun.popleft()
        try:
            event = next(stream)
        except Exception as error:  # whatever it is, the other requests go on
            return [(ticket, error)]
        if isinstance(event, DenoisingStep) or event.finish_reason is None:
            self._begun.append((ticket, stream))
        return [(ticket, event)]
