"""Generations done and time left, on stderr: a bar on a terminal, a line at every tenth elsewhere."""

import sys
import time

from mlx_dgemma.terminal.cli import Lines


def progress(total: int, done: int) -> "Bar | Lines":
    """A context manager with `update(count)`; `done` of the `total` generations are there already."""
    if sys.stderr.isatty():
        return Bar(total, done)
    began = time.perf_counter()

    def line(now: int) -> str:
        left = (time.perf_counter() - began) / (now - done) * (total - now)
        return f"{now} of {total} generations, {duration(left)} left"

    return Lines(total, line, done)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 3725 -> 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


class Bar:
    """rich's bar, on stderr."""

    def __init__(self, total: int, done: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeftColumn

        texts = TextColumn("sweep"), TextColumn("elapsed"), TextColumn("left")
        columns = texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeElapsedColumn(), texts[2], TimeLeftColumn()
        self._progress = Progress(
            *columns, console=Console(stderr=True), refresh_per_second=4, speed_estimate_period=300
        )
        self._task = self._progress.add_task("sweep", total=total, completed=done)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, count: int) -> None:
        self._progress.update(self._task, advance=count)
