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
from mlx_dgemma.vocabulary import EmbeddingTable, Prediction, Query, predict

PREFILL_CHUNK = 512  # tokens; bounds the score matrix of a long prompt
Denoiser = Callable[[mx.array, mx.array | None, Query], Prediction]


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
        clamped: bool per position, the ones that a steered canvas keeps fixed; None where nothing is.
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
    clamped: mx.array | None = None


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

    `denoiser` answers a Query about canvas ids (B, C) and the previous step's soft embeddings (None at first). With
    several rows, a row that is done keeps its draft while the others go on.
    """
    canvas, soft, finished = mx.array(noise.tokens(shape)), None, mx.zeros(shape[:1], mx.bool_)
    draft = canvas
    should_stop = StableAndConfident(config.stability_threshold, config.confidence_threshold)
    for remaining in range(config.max_denoising_steps, 0, -1):
        # 1. temperature, 2. proposal
        temperature = config.temperature(remaining)
        u = mx.array(noise.uniform(shape)) if config.token_choice == "categorical" else None
        prediction = denoiser(canvas, soft, Query(temperature, u, wants_soft=remaining > 1))
        # 3. entropy, acceptance
        entropy = prediction.entropy
        accepted = sampling.accept(entropy, config.entropy_bound)
        # 4. the next canvas
        next_canvas = sampling.renoise(prediction.proposal, accepted, mx.array(noise.tokens(shape)))
        # 5. stop? and 6. the draft, which is committed when the loop ends
        draft = mx.where(finished[:, None], draft, prediction.argmax)
        finished = finished | should_stop(draft, entropy)
        summary = mx.stack([finished.all().astype(mx.float32), accepted.sum().astype(mx.float32), entropy.mean()])
        soft = prediction.soft
        mx.eval(summary, next_canvas, draft, entropy, accepted, finished, *([] if soft is None else [soft]))
        done, accepted_count, mean_entropy = summary.tolist()  # the step's one host synchronisation
        done = bool(done) or remaining == 1
        step = config.max_denoising_steps - remaining + 1
        yield DenoisingStep(
            canvas_index, step, remaining, temperature, canvas, draft, entropy, accepted,
            int(accepted_count), mean_entropy, done,
        )  # fmt: skip
        if done:
            return
        canvas = next_canvas


def generate_canvases(
    model: DiffusionGemma, cache: PrefixCache, config: GenerationConfig, noise: Noise, max_canvases: int, batch: int = 1
) -> Iterator[DenoisingStep | CommittedCanvas]:
    """Denoises canvas after canvas; each committed one is encoded into the prefix before the next begins.

    Ends after `max_canvases`, or when the positions run out; the caller closes the generator to stop earlier (at a stop
    token, say).
    """
    shape = (batch, model.config.canvas_length)
    denoiser = model_denoiser(model, cache)
    for index in range(max_canvases):
        if cache.length + shape[1] > model.config.max_position_embeddings:
            return
        step = None
        for step in denoise_canvas(denoiser, config, noise, shape, index):
            yield step
        yield CommittedCanvas(index, step.draft, step.step)
        if index + 1 < max_canvases:
            prefill(model, step.draft, cache)


def model_denoiser(model: DiffusionGemma, cache: PrefixCache) -> Denoiser:
    """The model over a prefix, asked through the vocabulary stage, so that whole logits are never made."""
    embedding, cap = model.model.decoder.embed_tokens, model.config.final_logit_softcapping
    table = EmbeddingTable(embedding, model.embedding_scale, cap)
    return lambda canvas, soft, query: predict(model.denoise_hidden(canvas, cache, soft), table, query)


def prefill(model: DiffusionGemma, tokens: mx.array, cache: PrefixCache, chunk: int = PREFILL_CHUNK) -> None:
    """Encodes ids (B, T) into the prefix, chunk by chunk, and evaluates it."""
    for start in range(0, tokens.shape[1], chunk):
        model.encode(tokens[:, start : start + chunk], cache)
        mx.eval(cache.arrays())
