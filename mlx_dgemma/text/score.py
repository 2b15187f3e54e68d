"""How sure the model is of a given text, token by token, in two readings.

denoiser   each token with all others in their places and noise in its own, as `choose` reads labels: what the part of
           the model that writes texts thinks of this one. Sums are pseudo-log-likelihoods (Salazar et al. 2020).
causal     each token after those before it, by the encoder, which reads as plain Gemma does: the sum is the
           log-probability of the text. One pass; means something where the encoder was trained on answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion import sampling
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import host, memory
from mlx_dgemma.model.prefill import prefill, segments
from mlx_dgemma.text.choose import distributions
from mlx_dgemma.text.pictures import Sights
from mlx_dgemma.text.prompts import check_ids, encode
from mlx_dgemma.text.run import Run, sample_bytes

CHUNK = 64  # tokens whose causal logits are alive at a time: 67 MB with the published vocabulary
ROWS = 16  # canvases that are read at a time, at most


@dataclass(frozen=True)
class Score:
    """A text as the model reads it, at temperature 1.

    Attributes:
        tokens: its ids.
        log_p: of each token, nats.
        entropy: of the distribution at its place, nats.
    """

    tokens: list[int]
    log_p: list[float]
    entropy: list[float]

    @property
    def total(self) -> float:
        """Nats in all."""
        return sum(self.log_p)

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / len(self.log_p)

    @property
    def perplexity(self) -> float:
        return math.exp(-self.mean)


def score_text(run: Run, text: str | Sequence[int], *, causal: bool) -> Score:
    """Scores a text, or token ids, behind the prompt of a run; see `Engine.score`."""
    ids = _ids(run, text)
    with memory.explained():
        read = _causal(run, ids) if causal else _denoised(run, ids)
    return Score(ids, *read)


def _ids(run: Run, text: str | Sequence[int]) -> list[int]:
    if not isinstance(text, Sequence) or isinstance(text, bytes | bytearray):
        raise DGemmaError(f"the text to score is a {type(text).__name__}; give a text or a list of token ids")
    if not isinstance(text, str):
        ids = list(text)
    elif run.tokenizer is not None:
        ids = encode(run.tokenizer, text, "the text")
    else:
        raise DGemmaError("the checkpoint has no tokenizer files; give the text as token ids")
    if not all(type(token) is int for token in ids):
        raise DGemmaError("the text to score holds what is no token id; give a text or a list of token ids")
    if not ids:
        raise DGemmaError("the text to score is empty; give one token or more")
    size = run.model.config.canvas_length
    whole = math.ceil(len(ids) / size) * size  # as canvases, of which `check_ids` adds one
    check_ids(run.model, [*run.ids, *ids, *[0] * (max(0, whole - size) - len(ids))])
    return ids


def _causal(run: Run, ids: list[int]) -> tuple[list[float], list[float]]:
    """Log-probability of each token and entropy at its place, by the encoder."""
    log_p: list[float] = []
    entropy: list[float] = []
    cache = run.model.make_cache()
    for _ in segments(run.model, run.names[:-1], Sights(run.model, run.pictures), cache):
        pass
    read = [run.ids[-1], *ids[:-1]]
    for start in range(0, len(ids), CHUNK):
        logits = run.model.next_token_logits(mx.array([read[start : start + CHUNK]]), cache)  # (1, T, V)
        distribution = sampling.log_probabilities(logits)
        wanted = mx.array([ids[start : start + CHUNK]])[..., None]
        own = mx.take_along_axis(distribution, wanted, axis=-1).squeeze(-1)
        nats = sampling.token_entropy(distribution)
        memory.finish([own, nats, *cache.arrays()])
        log_p += host.floats(own[0])
        entropy += host.floats(nats[0])
    return log_p, entropy


def _denoised(run: Run, ids: list[int]) -> tuple[list[float], list[float]]:
    """The same by the denoiser: canvas by canvas, a row for each token, which has noise in its place."""
    model, size = run.model, run.model.config.canvas_length
    noise, cache = run.noise(), run.prefix().cache
    rows = max(1, min(ROWS, memory.total() // 8 // sample_bytes(model, len(run.ids))))
    log_p: list[float] = []
    entropy: list[float] = []
    for start in range(0, len(ids), size):
        tokens = ids[start : start + size]
        random = np.array(noise.tokens((1, size)))[0]
        canvas = np.array([*tokens, *_behind(run, size - len(tokens), random[len(tokens) :].tolist())])
        for first in range(0, len(tokens), rows):
            places = list(range(first, min(first + rows, len(tokens))))
            canvases = np.tile(canvas, (len(places), 1))
            canvases[np.arange(len(places)), places] = random[places]
            p = distributions(model, cache.take([0] * len(places)), mx.array(canvases), list(enumerate(places)))
            log_p += [math.log(max(own[tokens[place]], 1e-37)) for own, place in zip(p, places, strict=True)]
            entropy += (-np.sum(p * np.log(np.maximum(p, 1e-37)), axis=-1)).tolist()
        if start + size < len(ids):
            prefill(model, mx.array(canvas)[None], cache)
    return log_p, entropy


def _behind(run: Run, room: int, noise: list[int]) -> list[int]:
    """What fills the canvas behind the text: its end and padding; noise for a checkpoint that knows no end."""
    stops = run.settings.stops
    if not stops or not room:
        return noise
    pad = None if run.tokenizer is None else run.tokenizer.pad_token_id
    return [stops[0], *[stops[0] if pad is None else pad] * (room - 1)]
