"""Ranks as threads of one process: what they exchange goes through a list. For tests of what every rank computes."""

import threading
from collections.abc import Callable
from typing import TypeVar

import mlx.core as mx

from mlx_dgemma.model.ranks import Ranks

T = TypeVar("T")
TIMEOUT = 120  # seconds


class Threads(Ranks):
    """One of several threads; every exchange is worked out at once."""

    def __init__(self, rank: int, size: int, slots: list, barrier: threading.Barrier):
        self.rank, self.size, self._slots, self._barrier = rank, size, slots, barrier
        self.exchanged: list[tuple[int, ...]] = []  # shapes

    def all_gather(self, x: mx.array) -> mx.array:
        return self._told(x, mx.concatenate)

    def all_sum(self, x: mx.array) -> mx.array:
        return self._told(x, lambda parts: sum(parts[1:], parts[0]))

    def _told(self, x: mx.array, together: Callable[[list], mx.array]) -> mx.array:
        mx.eval(x)
        self._slots[self.rank] = x
        self.exchanged.append(x.shape)
        self._barrier.wait(TIMEOUT)
        out = together([mx.array(own) for own in self._slots])
        mx.eval(out)
        self._barrier.wait(TIMEOUT)
        return out


def in_threads(size: int, work: Callable[[Threads], T]) -> list[T]:
    """What `work` returns on each of so many ranks; the first error of any is raised."""
    slots, barrier = [None] * size, threading.Barrier(size)
    results: list = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, size, slots, barrier))
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                errors.append(error)
            barrier.abort()
        finally:
            mx.clear_streams()  # this thread's; one that is alive when the process ends aborts it

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
