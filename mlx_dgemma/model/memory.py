"""Starting work, waiting for it, and keeping the weights where a Mac's GPU can reach them."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_dgemma.model import cpu


def start(arrays: list[mx.array]) -> None:
    """Begins to evaluate; returns when all is queued."""
    with cpu.bounded_workspace():
        mx.async_eval(arrays)


def finish(arrays: list[mx.array]) -> None:
    """Evaluates and waits."""
    with cpu.bounded_workspace():
        mx.eval(arrays)


@contextmanager
def wired() -> Iterator[None]:
    """Lets a Mac's GPU keep all that it recommends in memory, so that macOS does not page weights out between steps.

    Buffers that are free need no limit of their own: prefill and the canvas loop give them back as they go.
    """
    if not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"])
    try:
        yield
    finally:
        mx.synchronize()  # the limit must not change under work that runs
        mx.set_wired_limit(before)
