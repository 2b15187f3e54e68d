"""One text: canvases as they are denoised, and as text when they are committed."""

from collections.abc import Iterator

from mlx_dgemma.diffusion.canvas import CommittedCanvas, DenoisingStep, generate_canvases
from mlx_dgemma.model import host, memory
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.transcript import Committed, Transcript


def stream_text(run: Run) -> Iterator[DenoisingStep | TextCanvas]:
    """One event per denoising step and one per committed canvas, as they happen."""
    with memory.explained():
        yield from _stream(run)


def _stream(run: Run) -> Iterator[DenoisingStep | TextCanvas]:
    cache, seconds = run.prefix()
    transcript = Transcript(run, seconds)
    canvases = generate_canvases(run.model, cache, run.settings, run.noise(), run.max_canvases, steerings=run.steerings)
    last = None
    for event in canvases:
        if isinstance(event, DenoisingStep):
            last = event
            with transcript.clock.paused():
                yield event
            continue
        canvas = transcript.add(_committed(event, last), is_last=run.is_last(event.canvas_index, cache))
        with transcript.clock.paused():
            yield canvas
        if canvas.finish_reason:
            return


def _committed(event: CommittedCanvas, last: DenoisingStep | None) -> Committed:
    """A canvas of one row, with what its last step knew; none had to be made for one that was given whole."""
    tokens = host.ints(event.tokens[0])
    if not event.steps or last is None:
        return Committed(tokens, 0, [0.0] * len(tokens), [0.0] * len(tokens))
    return Committed(tokens, event.steps, host.floats(last.log_p[0]), host.floats(last.entropy[0]))
