"""Starting work without letting MLX run far ahead of it, and keeping the weights where a GPU can reach them.

MLX allocates an operation's output when it is queued, and queues up to 100 operations on a CPU: the arrays of several
vocabulary blocks would be alive at a time. A memory limit makes it wait for work to finish instead. On a GPU the limit
stays as it is: there command buffers of 50 MB bound the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

WORKSPACE_BYTES = 32 << 20


def start(arrays: list[mx.array]) -> None:
    """Begins to evaluate; returns when all is queued."""
    with _bounded():
        mx.async_eval(arrays)


def finish(arrays: list[mx.array]) -> None:
    """Evaluates and waits."""
    with _bounded():
        mx.eval(arrays)


def on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


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


@contextmanager
def _bounded() -> Iterator[None]:
    if not on_cpu():
        yield
        return
    before = mx.set_memory_limit(mx.get_active_memory() + WORKSPACE_BYTES)
    try:
        yield
    finally:
        mx.set_memory_limit(before)
