"""Starting work, waiting for it, what a Mac's GPU keeps in memory, and what is said when memory runs out."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_dgemma.errors import OutOfMemory
from mlx_dgemma.model import cpu
from mlx_dgemma.model.limits import SharedLimit

MARGIN = 2 << 30  # bytes beyond weights and prefix: a chunk of prefill, blocks of scores and of the vocabulary
TIGHT = 0.9  # share of what a GPU may hold, above which weights leave too little for the rest
_OUT_OF_MEMORY = re.compile(r"insufficient memory|out of memory|unable to allocate|bad_alloc|exceeds .* buffer", re.I)
_WIRED = SharedLimit(lambda nbytes: mx.set_wired_limit(nbytes))
_wires = True
_bound: int | None = None


def start(arrays: list[mx.array], *, rows: int = 1) -> None:
    """Begins to evaluate what so many texts wait for; returns when all is queued."""
    with cpu.bounded_workspace(rows):
        mx.async_eval(arrays)


def finish(arrays: list[mx.array]) -> None:
    """Evaluates and waits."""
    with cpu.bounded_workspace():
        mx.eval(arrays)


def recommended() -> int | None:
    """Bytes that a Mac's GPU should hold at most; None elsewhere."""
    if not mx.metal.is_available():
        return None
    return int(mx.device_info()["max_recommended_working_set_size"])


def total() -> int:
    """Bytes that a run may use in all: what a Mac's GPU may hold, or the machine's memory; see `bound_total`."""
    if _bound is not None:
        return _bound
    return recommended() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def bound_total(nbytes: int | None) -> None:
    """Sets `total`, so that machines of different sizes decide alike; None sets it back."""
    global _bound
    _bound = nbytes


def use_wiring(enabled: bool) -> None:
    """Whether `wired` does anything, in this process."""
    global _wires
    _wires = enabled


@contextmanager
def wired(nbytes: int) -> Iterator[None]:
    """Lets a Mac's GPU keep so many bytes and a margin, so that macOS does not page weights out between steps.

    Several runs may hold it at a time. Not all that the GPU may hold is asked for: the desktop needs some too.
    """
    most = recommended()
    if most is None or not _wires:
        yield
        return
    is_finalizing, synchronize = sys.is_finalizing, mx.synchronize  # the module's names are gone at the very end
    with _WIRED.held(min(nbytes + MARGIN, most)):
        try:
            yield
        finally:
            if not is_finalizing():
                synchronize()  # the limit must not change under work that runs


def warning(nbytes: int) -> str | None:
    """What to say of weights that leave a Mac's GPU too little for the rest; None where they do not."""
    most = recommended()
    if most is None or nbytes <= TIGHT * most:
        return None
    return (
        f"the weights take {nbytes / 1e9:.1f} of the {most / 1e9:.1f} GB that this Mac's GPU may hold; expect it to be "
        "slow or to fail, and take a smaller recipe of dgemma-convert"
    )


@contextmanager
def explained() -> Iterator[None]:
    """Tells in one line that memory ran out.

    Raises:
        OutOfMemory: instead of what MLX raises then.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        used, most = mx.get_peak_memory() / 1e9, recommended()
        limit = "" if most is None else f", of the {most / 1e9:.1f} GB that the GPU may hold"
        raise OutOfMemory(
            f"out of memory: {used:.1f} GB were in use{limit}; take a shorter prompt, fewer samples, or a checkpoint "
            "with fewer bits per weight, and close other programs"
        ) from None
