"""One text: canvases as they are denoised, and as text when they are committed."""

from collections.abc import Iterator

from mlx_dgemma.diffusion.canvas import DenoisingStep, generate_canvases
from mlx_dgemma.model import memory
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.transcript import Transcript


def stream_text(run: Run) -> Iterator[DenoisingStep | TextCanvas]:
    """One event per denoising step and one per committed canvas, as they happen."""
    with memory.explained():
        yield from _stream(run)


def _stream(run: Run) -> Iterator[DenoisingStep | TextCanvas]:
    cache, seconds = run.prefix()
    transcript = Transcript(run, seconds)
    canvases = generate_canvases(run.model, cache, run.settings, run.noise(), run.max_canvases, steerings=run.steerings)
    for event in canvases:
        if isinstance(event, DenoisingStep):
            yield event
            continue
        is_last = run.is_last(event.canvas_index, cache)
        canvas = transcript.add(event.tokens[0].tolist(), event.steps, is_last=is_last)
        yield canvas
        if canvas.finish_reason:
            return
