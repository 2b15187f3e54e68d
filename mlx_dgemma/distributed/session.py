"""One command that runs as several processes: they meet, share a model's passes, and end together."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from mlx_dgemma.distributed.agreement import agree, checkpoint_facts, request_facts, versions
from mlx_dgemma.distributed.exchange import Exchange
from mlx_dgemma.distributed.plan import Plan
from mlx_dgemma.distributed.speed import Speed, measure
from mlx_dgemma.distributed.watchdog import Watchdog, end_process
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.model import memory
from mlx_dgemma.model.share import Share
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.run import Run


class Session:
    """This process among those that run the same command.

    Attributes:
        exchange: what ranks tell each other.
        rank, size: which one this is, of how many.
        code: the command's exit code, once it has one.
    """

    def __init__(self, plan: Plan, exchange: Exchange):
        self.plan, self.exchange = plan, exchange
        self.rank, self.size = exchange.rank, exchange.size
        self.code = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that speaks: to the terminal, over HTTP, into files."""
        return self.rank == 0

    def attach(self, engine: Engine, model: str | None) -> Speed:
        """Shares the passes of an engine's model, of which every rank has loaded the same; how fast that is.

        Raises:
            DGemmaError: another checkpoint, version or type of weights somewhere; shares that do not fit.
        """
        agree(self.exchange, {**versions(), **checkpoint_facts(engine, model)})
        memory.bound_total(int(min(self.exchange.numbers(memory.total() >> 20))) << 20)
        agree(self.exchange, {"--shares": repr(self.plan)})
        shared = Share(self.exchange.group, self.plan.shares)
        speed = measure(engine.model, shared, self.exchange)
        if self.plan.is_measured:
            shared = Share(self.exchange.group, speed.weights())
            speed = measure(engine.model, shared, self.exchange)
        engine.model.share = shared
        return speed

    def from_first(self, numbers: list[int]) -> list[int]:
        """The first rank's numbers."""
        found: list[int] = self.exchange.objects(numbers)[0]
        return found

    def compare(self, run: Run) -> None:
        """Checks that all ranks were asked the same.

        Raises:
            DGemmaError: what differs.
        """
        agree(self.exchange, request_facts(run))


@contextmanager
def together(plan: Plan | None) -> Iterator[Session | None]:
    """Meets the other ranks that `mlx.launch` has started; None for one process alone, which then runs as always.

    What leaves this by an exception ends the other ranks, as what leaves theirs ends this one.
    """
    group = None if plan is None else _meet()
    if plan is None or group is None:
        yield None
        return
    exchange = Exchange(group)
    watchdog = _watched(exchange)
    session = Session(plan, exchange)
    try:
        yield session
    except BaseException as error:
        watchdog.close(f"rank {exchange.rank} {_how(error)}")
        if isinstance(error, RuntimeError) and _is_lost(error):
            raise DGemmaError("another rank has ended; all ranks end together") from None
        raise
    watchdog.close(f"rank {session.rank} has ended with exit code {session.code}" if session.code else None)


def _meet() -> mx.distributed.Group | None:
    """The group of all ranks; None for one alone.

    Raises:
        DGemmaError: they cannot be reached.
    """
    if len(_hosts()) == 1:
        return None
    try:
        group = mx.distributed.init(strict="MLX_RANK" in os.environ)
    except (RuntimeError, ValueError) as error:
        raise DGemmaError(f"the other ranks cannot be reached ({first_line(error)}); check the hostfile") from None
    return group if group.size() > 1 else None


def _watched(exchange: Exchange) -> Watchdog:
    """A watchdog that is connected to all ranks."""
    watchdog = Watchdog(end_process)
    wait: Callable[[], None] | None = None
    address: list[object] = []
    if exchange.rank == 0:
        where, wait = watchdog.listen(_first_host(), exchange.size)
        address = list(where)
    host, port, token = json.loads(exchange.from_first(json.dumps(address).encode()))
    if wait is None:
        watchdog.connect((str(host), int(port), str(token)), exchange.rank)
    else:
        wait()
    return watchdog


def _first_host() -> str:
    """The address of rank 0 that the others know: a ring's first, or that of the coordinator of RDMA."""
    coordinator = os.environ.get("MLX_JACCL_COORDINATOR")
    if coordinator:
        return coordinator.rpartition(":")[0]
    hosts = _hosts()
    return hosts[0].rpartition(":")[0] if hosts else "127.0.0.1"


def _hosts() -> list[str]:
    """The addresses of a ring, one a rank; none for other backends."""
    try:
        return [str(own[0]) for own in json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))]
    except (KeyError, OSError, ValueError, LookupError, TypeError):
        return []


def first_stdin() -> bytes:
    """What stands on the stdin of rank 0; all ranks have to ask."""
    group = _meet()
    if group is None:
        return sys.stdin.buffer.read()
    exchange = Exchange(group)
    return exchange.from_first(sys.stdin.buffer.read() if exchange.rank == 0 else b"")


def _how(error: BaseException) -> str:
    """How a rank ended, for the others."""
    if isinstance(error, KeyboardInterrupt):
        return "was interrupted"
    return f"failed: {first_line(error)}" if str(error) else f"failed ({type(error).__name__})"


def _is_lost(error: RuntimeError) -> bool:
    return any(backend in str(error) for backend in ("[ring]", "[jaccl]", "[mpi]", "[nccl]"))


@contextmanager
def only_first(session: Session | None) -> Iterator[None]:
    """Nothing that ranks but the first print is seen; what they raise is."""
    if session is None or session.is_first:
        yield
        return
    out, err = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err
