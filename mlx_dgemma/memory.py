"""Starting work without letting MLX run far ahead of it.

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
def _bounded() -> Iterator[None]:
    if not on_cpu():
        yield
        return
    before = mx.set_memory_limit(mx.get_active_memory() + WORKSPACE_BYTES)
    try:
        yield
    finally:
        mx.set_memory_limit(before)
