"""Several texts at a time: a denoising step of all in one forward pass, and between steps what each needs alone.

A text is a row of the steps that it is ready for, from the first step of a canvas to its last, whatever step the others
are at; it leaves with its canvas and joins again with the next. Prompts are encoded chunk by chunk between steps. So
none waits for another's end, and each is written as it would be alone, up to the rounding of products of other shapes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_dgemma.diffusion.denoiser import Forward, Pause, together
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.errors import ContextOverflow, DGemmaError
from mlx_dgemma.model import memory
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.generation import Written, write
from mlx_dgemma.text.request import MAX_ROWS, Request
from mlx_dgemma.text.run import Run, sample_bytes

Event = DenoisingStep | TextCanvas
Happened = tuple[int, Event | Exception]


@dataclass(eq=False)
class _Text:
    """One that is being written; `nbytes` is what it takes, roughly, and `forward` the pass that it waits for."""

    ticket: int
    run: Run
    written: Written
    forward: Forward[mx.array] | None = None

    @property
    def nbytes(self) -> int:
        return sample_bytes(self.run.model, len(self.run.ids))


class Scheduler:
    """Texts in the order in which they came; those that are begun share their steps, the others wait."""

    def __init__(
        self, prepare: Callable[[Request], Run], *, max_rows: int = MAX_ROWS, context: int | None = None
    ):  # fmt: skip
        """What writes.

        Args:
            prepare: checks a request, as `Engine.prepare` does; always of the same engine.
            max_rows: texts that are written at a time; fewer where memory would not do.
            context: positions that a prompt and its answer may take together; by default what the model has.
        """
        if type(max_rows) is not int or max_rows < 1:
            raise DGemmaError(f"at least one text has to be written at a time, got {max_rows!r}")
        self.prepare, self.max_rows, self.context = prepare, max_rows, context
        self._waiting: deque[_Text] = deque()
        self._begun: list[_Text] = []
        # of those that are begun, each is in one of these: it goes on at once, behind a pause, or once it is answered
        self._ready: deque[_Text] = deque()
        self._paused: deque[_Text] = deque()
        self._asking: list[_Text] = []
        self._owes_step = False  # whether those that ask waited for one's work of its own
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
        run = self._within(self.prepare(request))
        self._tickets += 1
        self._waiting.append(_Text(self._tickets, run, write(run)))
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
        for text in [text for text in (*self._waiting, *self._begun) if text.ticket == ticket]:
            self._end(text)

    def advance(self) -> list[Happened]:
        """One unit of work: a step of all that are ready for one, a chunk of a prompt, or what lies between.

        Returns:
            What happened, by ticket; often nothing. A `TextCanvas` with a `finish_reason` and an error are the last of
            their ticket.
        """
        self._admit()
        if self._ready:
            return self._go_on(self._ready.popleft())
        if self._asking and (self._owes_step or not self._paused):
            self._owes_step = False
            return self._step()
        if self._paused:
            self._owes_step = True
            return self._go_on(self._paused.popleft())
        return []

    def close(self) -> None:
        """Nothing more will be asked for."""

    def _admit(self) -> None:
        """Begins texts that wait, as long as there are rows and memory for them."""
        new = []
        while self._waiting and len(self._begun) < self.max_rows and self._fits(self._waiting[0]):
            new.append(self._waiting.popleft())
            self._begun.append(new[-1])
        self._paused.extendleft(reversed(new))  # before the others: they have waited for their first canvas

    def _fits(self, text: _Text) -> bool:
        room = memory.total() - text.run.model.nbytes - memory.MARGIN
        return not self._begun or sum(own.nbytes for own in (*self._begun, text)) <= room

    def _go_on(self, text: _Text) -> list[Happened]:
        """A text's own work, up to the next place where it gives way."""
        try:
            event = next(text.written)
        except Exception as error:  # whatever it is, the other texts go on
            self._end(text)
            return [(text.ticket, error)]
        if isinstance(event, Forward):
            self._ask(text, event)
            return []
        if isinstance(event, Pause):
            self._paused.append(text)
            return []
        if isinstance(event, DenoisingStep):
            self._ready.append(text)
        elif event.finish_reason is None:
            self._paused.append(text)  # the canvas will be encoded first
        else:
            self._end(text)
        return [(text.ticket, event)]

    def _ask(self, text: _Text, forward: Forward[mx.array]) -> None:
        """A text knows what its next pass is of, or needs it answered."""
        if forward.query is not None:
            text.forward = forward
            self._asking.append(text)
            return
        if len(self._begun) == 1:
            forward.advance()  # its graph is built while the last one is computed
        self._ready.append(text)  # behind the others, so that all are computed before one is waited for

    def _step(self) -> list[Happened]:
        """Answers all that ask, in one pass."""
        asking, self._asking = self._asking, []
        try:
            with memory.explained():
                together([text.forward for text in asking if text.forward is not None])
        except Exception as error:
            for text in asking:
                self._end(text)
            return [(text.ticket, error) for text in asking]
        self._ready.extend(asking)
        return []

    def _end(self, text: _Text) -> None:
        """Forgets a text."""
        text.written.close()
        text.forward = None
        for texts in (self._waiting, self._begun, self._ready, self._paused, self._asking):
            with suppress(ValueError):
                texts.remove(text)


def stream_many(
    prepare: Callable[[Request], Run], requests: Iterable[Request], max_rows: int
) -> Iterator[tuple[int, Event | DGemmaError]]:  # fmt: skip
    """What happens to each of some requests, by its number; see `Engine.stream_many`."""
    scheduler, numbers = Scheduler(prepare, max_rows=max_rows), dict[int, int]()
    coming = enumerate(requests)
    is_exhausted = False
    try:
        while not (is_exhausted and scheduler.is_idle):
            while not is_exhausted and len(numbers) < max_rows:
                number, request = next(coming, (-1, None))
                if request is None:
                    is_exhausted = True
                    break
                try:
                    numbers[scheduler.add(request)[0]] = number
                except DGemmaError as error:
                    yield number, error
            for ticket, event in scheduler.advance():
                is_last = isinstance(event, Exception) or (isinstance(event, TextCanvas) and event.finish_reason)
                number = numbers.pop(ticket) if is_last else numbers[ticket]
                if isinstance(event, Exception) and not isinstance(event, DGemmaError):
                    raise event
                yield number, event
    finally:
        for ticket in numbers:
            scheduler.cancel(ticket)
