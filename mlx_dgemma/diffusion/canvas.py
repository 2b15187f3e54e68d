"""Block diffusion: `denoise_canvas` refines one canvas, `generate_canvases` stitches canvases onto the prefix.

Both are generators of typed events over token ids; they know nothing of text or terminals. `refine` and `stitch` are
the same for who shares forward passes with others (see `denoiser`).
"""

from collections.abc import Generator, Iterator, Sequence

import mlx.core as mx

from mlx_dgemma.diffusion.denoiser import Begun, Denoiser, Forward, Pause, alone, pauses
from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.diffusion.noise import Noise
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.shared import make_denoiser
from mlx_dgemma.diffusion.state import CanvasState
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.diffusion.work import Work
from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import chunks


def denoise_canvas(
    denoiser: Denoiser[Begun], config: GenerationConfig, noise: Noise | Sequence[Noise], shape: tuple[int, int],
    canvas_index: int = 0, steering: Steering | None = None,
) -> Iterator[DenoisingStep]:  # fmt: skip
    """Refines one canvas of `shape` (B, C) from uniform noise; the last event's draft is the result.

    With several rows, a row that is done keeps its draft while the others go on; with a sequence of noise sources each
    row has its own, from which it draws until it is done. Nothing is yielded for a canvas that is given whole.

    The next step's graph is built while a step runs. A GPU gets it as soon as this step's flags are read, and computes
    while the caller looks at the event; so one step is ahead when the caller closes the generator early. A CPU would
    compute it at once: there the event comes first.

    Raises:
        DGemmaError: the model's output is not a number, or a strategy gave a wrong answer.
    """
    return alone(refine(denoiser, config, noise, shape, canvas_index, steering))


def refine(
    denoiser: Denoiser[Begun], config: GenerationConfig, noise: Noise | Sequence[Noise], shape: tuple[int, int],
    canvas_index: int = 0, steering: Steering | None = None, alternatives: int = 0,
) -> Generator[Forward[Begun] | DenoisingStep, None, None]:  # fmt: skip
    """`denoise_canvas`, whose passes somebody else answers; none is ahead of the events that was not begun in time."""
    steered = steering or Steering(None, None)
    canvas = CanvasState(denoiser, config, noise, shape, canvas_index, steered, alternatives)
    if steered.is_complete:
        return
    if canvas.settled is not None:
        yield from _settle(canvas)
        return
    pending = yield from canvas.submit(canvas.forward(), config.max_denoising_steps)
    while pending.step.remaining > 1:
        ahead = canvas.forward()
        try:
            yield ahead
            event = pending.read()
            canvas.learn(event, pending)
            is_eager = ahead.is_begun and not cpu.on_cpu()
            if is_eager and not event.finished:
                pending = yield from canvas.submit(ahead, event.remaining - 1)
            yield event
            if event.finished:
                return
            if not is_eager:
                pending = yield from canvas.submit(ahead, event.remaining - 1)
        finally:
            ahead.cancel()
    yield pending.read()


def _settle(canvas: CanvasState[Begun]) -> Generator[Forward[Begun] | DenoisingStep, None, None]:
    """`refine` where the next pass depends on what the last one came to, so that none is ahead."""
    remaining = canvas.config.max_denoising_steps
    while True:
        pending = yield from canvas.submit(canvas.forward(), remaining)
        event = pending.read()
        canvas.learn(event, pending)
        yield event
        if event.finished:
            return
        remaining -= 1


def generate_canvases(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise | Sequence[Noise],
    max_canvases: int, batch: int = 1, steerings: Sequence[Steering] = (),
) -> Iterator[DenoisingStep | CommittedCanvas]:  # fmt: skip
    """Denoises canvas after canvas; each committed one is encoded into the prefix before the next begins.

    `steerings` steer the first canvases, one each. Ends after `max_canvases`, or when the positions run out; the caller
    closes the generator to stop earlier (at a stop token, say). Where the caller has made the prefix longer before it
    goes on behind a committed canvas, that is not encoded: the next canvas follows what the caller encoded.
    """
    return alone(stitch(model, cache, config, noise, max_canvases, batch, steerings))


def stitch(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise | Sequence[Noise],
    max_canvases: int, batch: int = 1, steerings: Sequence[Steering] = (), alternatives: int = 0,
) -> Generator[Pause | DenoisingStep | CommittedCanvas, None, None]:  # fmt: skip
    """`generate_canvases`, whose passes somebody else answers."""
    shape = batch, model.config.canvas_length
    with memory.wired(model.nbytes + cache.nbytes):
        yield from _stitch(model, cache, config, noise, shape, max_canvases, steerings, alternatives)


def _stitch(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise | Sequence[Noise],
    shape: tuple[int, int], max_canvases: int, steerings: Sequence[Steering], alternatives: int,
) -> Generator[Pause | DenoisingStep | CommittedCanvas, None, None]:  # fmt: skip
    denoiser = make_denoiser(model, cache)
    for index in range(max_canvases):
        if cache.length + shape[1] > model.config.max_position_embeddings:
            return
        steering = steerings[index] if index < len(steerings) else None
        step, work = None, Work()
        for event in refine(denoiser, config, noise, shape, index, steering, alternatives):
            if isinstance(event, DenoisingStep):
                step, work = event, work + event.work
            yield event
        if step is not None:
            draft = step.draft
        else:
            assert steering is not None and steering.given is not None  # no step is made for a canvas given whole
            draft = mx.broadcast_to(steering.given, shape)
        mx.clear_cache()  # buffers of this canvas's sizes; the next prefix is longer, or there is none
        length = cache.length
        yield CommittedCanvas(index, draft, step.step if step else 0, work)
        if index + 1 < max_canvases and cache.length == length:
            yield from pauses(chunks(model, draft, cache))
