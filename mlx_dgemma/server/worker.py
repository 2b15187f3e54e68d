"""The one thread that owns MLX: it loads the engine, takes jobs in, and works on them, one unit after another."""

from __future__ import annotations

import atexit
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.shared import unshared
from mlx_dgemma.distributed.exchange import Exchange
from mlx_dgemma.distributed.relay import leading
from mlx_dgemma.errors import DGemmaError, OutOfMemory, first_line
from mlx_dgemma.model import host
from mlx_dgemma.server.errors import Refused, refusal
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.pictures import pictures_of
from mlx_dgemma.text.request import MAX_ROWS, Request
from mlx_dgemma.text.scheduler import Scheduler

IDLE = 0.2  # seconds between looks at whether there is something to do


@dataclass(frozen=True)
class Draft:
    """A denoising step, as plain numbers: of one canvas, position by position."""

    canvas: int
    step: int
    max_steps: int
    temperature: float
    mean_entropy: float
    accepted_count: int
    tokens: Sequence[int]
    entropy: Sequence[float]
    accepted: Sequence[bool]
    clamped: Sequence[bool]
    computed: frozenset[int] | None = None  # positions, the others had settled; None for all


Told = Draft | TextCanvas | Refused | int  # an int: admitted, with so many tokens of prompt


@dataclass(eq=False)
class Job:
    """Something to write.

    Attributes:
        request: what.
        tell: called in the worker's thread with what happens; a `TextCanvas` with a reason, or a `Refused`, is the end.
        drafts: whether denoising steps are told.
        is_cancelled: nobody waits for it any more.
    """

    request: Request
    tell: Callable[[Told], None]
    drafts: bool = False
    is_cancelled: bool = False
    ticket: int = -1

    def cancel(self) -> None:
        """It ends between two units of work."""
        self.is_cancelled = True


@dataclass
class Counts:
    """What was done so far."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    images: int = 0
    image_tokens: int = 0
    steps: int = 0
    full_steps: float = 0.0
    seconds: float = 0.0  # of work
    began: float = field(default_factory=time.time)


class Worker:
    """Runs jobs of one engine in a thread of its own."""

    def __init__(
        self, load: Callable[[], Engine], *, max_rows: int = MAX_ROWS, queue: int = 32, context: int | None = None,
        exchange: Exchange | None = None,
    ):  # fmt: skip
        """What works.

        Args:
            load: makes the engine, in the thread.
            max_rows: how many texts are written at a time.
            queue: how many may wait beside them.
            context: positions of a prompt and its answer, see `Scheduler`.
            exchange: with other ranks, which work along; None for this process alone.
        """
        self._exchange = exchange
        self._load, self.max_rows, self.queue, self.context = load, max_rows, queue, context
        self.counts = Counts()
        self._arrived: deque[Job | Callable[[Engine], None]] = deque()
        self._wake, self._ready, self._idle = threading.Event(), threading.Event(), threading.Event()
        self._stops = False
        self._error: BaseException | None = None
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()
        self.waiting = 0  # jobs that are not done
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._live, name="mlx", daemon=True)

    def start(self) -> Engine:
        """Loads the engine and begins to work.

        Raises:
            DGemmaError: as the loading did.
        """
        self._thread.start()
        atexit.register(self.stop)  # Python would end the thread in the middle of MLX's work, which is an abort
        self._ready.wait()
        if self._error is not None:
            raise self._error
        assert self._engine is not None
        return self._engine

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._idle.is_set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes jobs in, all or none.

        Raises:
            Refused: too many wait, or the thread is dead.
        """
        if not self.is_alive or self._stops:
            raise Refused(503, "the server is going down" if self._stops else "the model's thread is dead")
        with self._lock:
            if self.waiting + len(jobs) > self.queue + self.max_rows:
                raise Refused(503, f"{self.waiting} requests are waiting already; try again later", code="queue_full")
            self.waiting += len(jobs)
        self._arrived.extend(jobs)
        self._wake.set()

    def call(self, work: Callable[[Engine], None]) -> None:
        """Lets something short be done in the thread, between two units of work.

        Raises:
            Refused: the thread is dead.
        """
        if not self.is_alive or self._stops:
            raise Refused(503, "the model's thread is dead")
        self._arrived.append(work)
        self._wake.set()

    def stop(self, seconds: float = 30.0) -> None:
        """Ends its work; what waits is told so."""
        self._stops = True
        self._wake.set()
        self._idle.wait(seconds)
        atexit.unregister(self.stop)

    def _live(self) -> None:
        """Works, and then waits for the process to end: now and then MLX aborts where a thread of its streams ends."""
        try:
            self._run()
        except BaseException:  # it is kept, and told by `is_alive`
            traceback.print_exc()
        self._idle.set()
        threading.Event().wait()

    def _run(self) -> None:
        try:
            self._engine = self._load()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._ready.set()
        scheduler = leading(self._engine.prepare, self._exchange, max_rows=self.max_rows, context=self.context)
        try:
            while not self._stops:
                self._take_in(scheduler, self._engine)
                if scheduler.is_idle:
                    self._wake.wait(IDLE)
                    self._wake.clear()
                else:
                    self._advance(scheduler)
        except BaseException as error:
            self._error = error
            raise
        finally:
            for job in [*self._jobs.values(), *(job for job in self._arrived if isinstance(job, Job))]:
                job.tell(Refused(503, "the server is going down" if self._stops else "the model's thread is dead"))
        scheduler.close()

    def _take_in(self, scheduler: Scheduler, engine: Engine) -> None:
        """New jobs join; cancelled ones leave."""
        while self._arrived:
            job = self._arrived.popleft()
            if not isinstance(job, Job):
                with unshared(engine.model):  # the other ranks do not hear of it
                    job(engine)
                continue
            if job.is_cancelled:
                self._end(job)
                continue
            try:
                job.ticket, length = scheduler.add(job.request)
            except DGemmaError as error:
                self._end(job, refusal(error))
                continue
            self.counts.requests += 1
            self.counts.prompt_tokens += length
            pictures = pictures_of(job.request.prompt)
            self.counts.images += len(pictures)
            self.counts.image_tokens += sum(own.tokens for own in pictures)
            self._jobs[job.ticket] = job
            job.tell(length)
        for job in [job for job in self._jobs.values() if job.is_cancelled]:
            scheduler.cancel(job.ticket)
            self.counts.cancelled += 1
            self._end(job)

    def _advance(self, scheduler: Scheduler) -> None:
        """One unit of work, and who is told of it."""
        began = time.perf_counter()
        for ticket, event in scheduler.advance():
            job = self._jobs[ticket]
            if isinstance(event, DenoisingStep):
                self.counts.steps += 1
                if job.drafts and not job.is_cancelled:
                    job.tell(_draft(event))
            elif isinstance(event, TextCanvas):
                self.counts.tokens += len(event.tokens)
                self._told(job, event)
            else:
                if isinstance(event, OutOfMemory):
                    self._make_room()
                self._end(job, refusal(event) if isinstance(event, DGemmaError) else _fault(event))
        self.counts.seconds += time.perf_counter() - began

    def _told(self, job: Job, canvas: TextCanvas) -> None:
        job.tell(canvas)
        if canvas.finish_reason is not None:
            self.counts.cached_tokens += canvas.stats.cached_tokens
            self.counts.full_steps += canvas.stats.full_steps
            self._end(job)

    def _end(self, job: Job, refused: Refused | None = None) -> None:
        self._jobs.pop(job.ticket, None)
        with self._lock:
            self.waiting -= 1
        if refused is not None:
            self.counts.refused += 1
            job.tell(refused)

    def _make_room(self) -> None:
        """Forgets what was remembered."""
        if self._engine is not None and self._engine.prefixes is not None:
            self._engine.prefixes.clear()
        mx.clear_cache()


def _fault(error: BaseException) -> Refused:
    """An error of ours: told without what it is about."""
    return Refused(500, f"the server failed: {type(error).__name__}: {first_line(error)[:200]}")


def _draft(event: DenoisingStep) -> Draft:
    """The first row of a step, off the device."""
    flags = [event.accepted, event.accepted & False if event.clamped is None else event.clamped]
    accepted, clamped = ([value == 1.0 for value in host.floats(own[0].astype(mx.float32))] for own in flags)
    return Draft(
        canvas=event.canvas_index,
        step=event.step,
        max_steps=event.step + event.remaining - 1,
        temperature=event.temperature,
        mean_entropy=event.mean_entropy,
        accepted_count=event.accepted_count,
        tokens=host.ints(event.draft[0]),
        entropy=host.floats(event.entropy[0]),
        accepted=accepted,
        computed=None if event.computed is None else frozenset(event.computed),
        clamped=clamped,
    )
