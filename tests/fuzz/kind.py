"""What a kind of input is, and trying one: in a folder of its own, within its time."""

import random
import reprlib
import resource
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

MEMORY = 4 << 30  # bytes that an input may take
_SHOW = reprlib.Repr()
_SHOW.maxstring = _SHOW.maxother = 300
_SHOW.maxlist = _SHOW.maxtuple = _SHOW.maxdict = 30


class Fault(AssertionError):
    """What a fuzzed program must not do."""


class Hung(BaseException):
    """An input took longer than it may; no error that a program could catch."""


def prefixes(made: Any) -> Iterable[Any]:
    """Smaller inputs of the same kind: half of a sequence, all but one of its items."""
    if not isinstance(made, str | list | tuple) or len(made) < 2:
        return
    half = len(made) // 2
    yield made[:half]
    yield made[half:]
    if len(made) <= 32:
        yield from (made[:i] + made[i + 1 :] for i in range(len(made)))


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: on the command line.
        make: an input, from nothing but the random numbers it is given.
        run: puts an input to use in an empty folder; True if there was a right answer, False if it was refused in one
            line; whatever it raises is a failure.
        count: how many inputs the tests try.
        seconds: that one input may take.
        smaller: inputs to try in place of one that fails, as long as they fail too.
    """

    name: str
    make: Callable[[random.Random], Any]
    run: Callable[[Any, Path], bool]
    count: int
    seconds: float = 30.0
    smaller: Callable[[Any], Iterable[Any]] = prefixes


@dataclass(frozen=True)
class Failure:
    """An input that went wrong, as small as it was made."""

    kind: Kind
    seed: int
    made: Any
    what: BaseException

    @property
    def replay(self) -> str:
        return f"python -m tests.fuzz --kind {self.kind.name} --seed {self.seed}"

    @property
    def frames(self) -> list[str]:
        """Where it happened, innermost last, without libraries."""
        frames = traceback.extract_tb(self.what.__traceback__)
        ours = [frame for frame in frames if "site-packages" not in frame.filename]
        return [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in ours][-6:]

    @property
    def signature(self) -> tuple[str, ...]:
        """The same for failures that are probably one fault."""
        return self.kind.name, type(self.what).__name__, str(self.what)[:12], *self.frames[-2:]

    def __str__(self) -> str:
        told = f"{self.kind.name}, seed {self.seed}: {type(self.what).__name__}: {str(self.what)[:1000]}"
        return "\n".join((told, *self.frames, f"input: {_SHOW.repr(self.made)}", f"replay: {self.replay}"))


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises Hung when the time is over, again and again where that is swallowed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded(nbytes: int = MEMORY) -> Iterator[None]:
    """Lets this process have so many more bytes of address space, where the operating system can tell and bound it."""
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(sizes.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def made_by(kind: Kind, seed: int) -> Any:
    """The input of a seed: the same on every machine."""
    return kind.make(random.Random(f"{kind.name} {seed}"))


def attempt(kind: Kind, made: Any) -> bool | BaseException:
    """Whether there was an answer (False: a refusal), or what went wrong."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            with bounded(), deadline(kind.seconds):
                return kind.run(made, Path(folder))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an aborted library raises one that is no Exception
            return error


def tried(kind: Kind, seed: int, *, shrink: bool = True) -> bool | Failure:
    """Tries the input of a seed; a failure has the smallest input that was found to fail as well."""
    made = made_by(kind, seed)
    found = attempt(kind, made)
    if isinstance(found, bool):
        return found
    tries = 60 if shrink and not isinstance(found, Hung) else 0
    while tries > 0:
        for candidate in kind.smaller(made):
            tries -= 1
            again = attempt(kind, candidate)
            if type(again) is type(found):
                made, found = candidate, again
                break
            if tries <= 0:
                break
        else:
            break
    return Failure(kind, seed, made, found)
