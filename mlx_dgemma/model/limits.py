"""Limits of the whole process that several users hold at a time: MLX has one memory limit and one wired limit."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedLimit:
    """While anybody holds it the limit is the highest that a holder asked for; then it is again what it was before."""

    def __init__(self, set_limit: Callable[[int], int]):
        """`set_limit` takes bytes and returns what the limit was."""
        self._set = set_limit
        self._lock = threading.Lock()
        self._held: list[int] = []
        self._before = 0

    @contextmanager
    def held(self, nbytes: int) -> Iterator[None]:
        """Holds the limit at `nbytes` or above, in any thread, interleaved with others in any order."""
        is_finalizing = sys.is_finalizing  # the module's names are gone at the very end
        with self._lock:
            before = self._set(max([nbytes, *self._held]))
            if not self._held:
                self._before = before
            self._held.append(nbytes)
        try:
            yield
        finally:
            if not is_finalizing():  # then the process's limits go with it
                with self._lock:
                    self._held.remove(nbytes)
                    self._set(max(self._held, default=self._before))
