"""Block diffusion: `denoise_canvas` refines one canvas, `generate_canvases` stitches canvases onto the prefix.

Both are generators of typed events over token ids; they know nothing of text or terminals.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma import sampling
from mlx_dgemma.cache import PrefixCache
from mlx_dgemma.generation_config import GenerationConfig
from mlx_dgemma.model import DiffusionGemma
from mlx_dgemma.noise import Noise
from mlx_dgemma.stopping import StableAndConfident

PREFILL_CHUNK = 512  # tokens; bounds the score matrix of a long prompt
Denoiser = Callable[[mx.array, mx.array | None], mx.array]


@dataclass(frozen=True)
class DenoisingStep:
    """One executed denoising step; arrays are (B, C).

    Attributes:
        canvas_index: which canvas, from 0.
        step: which step of it, from 1.
        remaining: steps left including this one, N … 1 (the schedule's n).
        temperature: what the logits were divided by.
        canvas: ids the step started from.
        draft: argmax ids, what would be committed now.
        entropy: nats per position.
        accepted: bool per position.
        accepted_count: positions accepted, over all rows.
        mean_entropy: nats, over all positions.
        finished: whether the canvas is done.
    """

    canvas_index: int
    step: int
    remaining: int
    temperature: float
    canvas: mx.array
    draft: mx.array
    entropy: mx.array
    accepted: mx.array
    accepted_count: int
    mean_entropy: float
    finished: bool


@dataclass(frozen=True)
class CommittedCanvas:
    """A finished canvas: its argmax ids (B, C) and the number of denoising steps it took."""

    canvas_index: int
    tokens: mx.array
    steps: int


def denoise_canvas(
    denoiser: Denoiser, config: GenerationConfig, noise: Noise, shape: tuple[int, int], canvas_index: int = 0
) -> Iterator[DenoisingStep]:
    """Refines one canvas of `shape` (B, C) from uniform noise; the last event's draft is the result.

    `denoiser` maps canvas ids (B, C) and the previous tempered logits (None at first) to logits (B, C, V). With several
    rows, a row that is done keeps its draft while the others go on.
    """
    canvas, previous, finished = mx.array(noise.tokens(shape)), None, mx.zeros(shape[:1], mx.bool_)
    draft = canvas
    should_stop = StableAndConfident(config.stability_threshold, config.confidence_threshold)
    for remaining in range(config.max_denoising_steps, 0, -1):
        # 1. temperature
        temperature = config.temperature(remaining)
        tempered = denoiser(canvas, previous) / temperature  # (B, C, V)
        log_p, argmax = sampling.log_probabilities(tempered), tempered.argmax(axis=-1).astype(mx.int32)
        # 2. proposal
        proposal = (
            sampling.draw(log_p, mx.array(noise.uniform(shape))) if config.token_choice == "categorical" else argmax
        )
        # 3. entropy, acceptance
        entropy = sampling.token_entropy(log_p)
        accepted = sampling.accept(entropy, config.entropy_bound)
        # 4. the next canvas
        next_canvas = sampling.renoise(proposal, accepted, mx.array(noise.tokens(shape)))
        # 5. stop? and 6. the draft, which is committed when the loop ends
        draft = mx.where(finished[:, None], draft, argmax)
        finished = finished | should_stop(draft, entropy)
        summary = mx.stack([finished.all().astype(mx.float32), accepted.sum().astype(mx.float32), entropy.mean()])
        mx.eval(summary, next_canvas, tempered, draft, entropy, accepted, finished)
        done, accepted_count, mean_entropy = summary.tolist()  # the step's one host synchronisation
        done = bool(done) or remaining == 1
        step = config.max_denoising_steps - remaining + 1
        yield DenoisingStep(
            canvas_index, step, remaining, temperature, canvas, draft, entropy, accepted,
            int(accepted_count), mean_entropy, done,
        )  # fmt: skip
        if done:
            return
        canvas, previous = next_canvas, tempered


def generate_canvases(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise, max_canvases: int, batch: int = 1
) -> Iterator[DenoisingStep | CommittedCanvas]:
    """Denoises canvas after canvas; each committed one is encoded into the prefix before the next begins.

    Ends after `max_canvases`, or when the positions run out; the caller closes the generator to stop earlier (at a stop
    token, say).
    """
    shape = (batch, model.config.canvas_length)
    for index in range(max_canvases):
        if cache.length + shape[1] > model.config.max_position_embeddings:
            return
        step = None
        for step in denoise_canvas(lambda c, p: model.denoise(c, cache, p), config, noise, shape, index):
            yield step
        yield CommittedCanvas(index, step.draft, step.step)
        if index + 1 < max_canvases:
            prefill(model, step.draft, cache)


def prefill(model: DiffusionGemma, tokens: mx.array, cache: PrefixCache, chunk: int = PREFILL_CHUNK) -> None:
    """Encodes ids (B, T) into the prefix, chunk by chunk, and evaluates it."""
    for start in range(0, tokens.shape[1], chunk):
        model.encode(tokens[:, start : start + chunk], cache)
        mx.eval(cache.arrays())
