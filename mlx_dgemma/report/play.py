"""A trace played on the terminal: the live canvas on stderr, committed text on stdout, as while it was recorded."""

import sys
import time

import numpy as np

from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.report.texts import RecordedTexts, shown, stops
from mlx_dgemma.terminal import signals
from mlx_dgemma.terminal.progress import ProgressLine
from mlx_dgemma.terminal.watch import LiveCanvas, terminal
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.trace.trace import Trace, replay

LEAST, MOST = 0.3, 3600.0  # seconds that a step is shown, where no speed is given; and ever


def play(trace: Trace, speed: float | None = None) -> None:
    """Plays a trace. Without a terminal on stderr a line says so and the text is written at once.

    Args:
        trace: the run; of several samples the first is shown.
        speed: how many times as fast as recorded, > 0; None is as recorded, but LEAST seconds a step.
    """
    console = terminal()
    if console is None:
        print("--play needs a terminal on stderr; writing the text only", file=sys.stderr)
        progress, waits = ProgressLine(enabled=False), None
    else:
        progress, waits = LiveCanvas(console, RecordedTexts(trace), stops(trace)), iter(_waits(trace, speed))
    text = ""
    try:
        for event in replay(trace):
            signals.check()
            if isinstance(event, TextCanvas):  # token ids that were recorded have no text
                text = event.text
                progress.text(shown(text) if sys.stdout.isatty() else text)
            elif isinstance(event, DenoisingStep) and waits is not None:
                progress.step(event)
                time.sleep(next(waits))  # after the step, or a canvas's last one would not be seen
    finally:
        progress.clear()
        if text and not text.endswith("\n"):
            print()


def _waits(trace: Trace, speed: float | None) -> list[float]:
    """Seconds that each step is shown; a damaged trace may have any numbers there."""
    seconds = np.clip(np.nan_to_num(trace.seconds), 0, MOST)
    return [float(wait) for wait in np.clip(seconds / (speed or 1), LEAST if speed is None else 0.0, MOST)]
