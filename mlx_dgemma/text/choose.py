"""Reading a steered canvas instead of writing one: the probability of each of some labels, from one denoiser pass.

Each label makes a canvas of its own out of the template. What all of them agree on is pinned; where they differ the
canvas holds noise, which denoising learned to see through, and the probabilities of the labels' tokens are read there.
So a slot takes one row, labels of equal length let all slots share it, and all rows are one batch over one prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.prompts import check_vocabulary, encode
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.template import Piece, ending, parse_pieces

DRAWS = 1  # of the noise: more were not better (`python -m benchmarks.choose`)
Canvas = tuple[int | None, ...]


@dataclass(frozen=True)
class _Slot:
    """One slot: the canvas that is read, the P positions where the L labels differ, and their tokens there (L, P)."""

    canvas: Canvas
    positions: list[int]
    tokens: list[list[int]]


def read_choices(run: Run, template: str, labels: Sequence[Sequence[str]], draws: int) -> list[dict[str, float]]:
    """Probabilities of the labels in each slot of a template; see `Engine.choose_each`."""
    if not isinstance(labels, Sequence):
        raise DGemmaError(f"labels are a {type(labels).__name__}; give a list of texts for each slot")
    for own in labels:
        _check(own)
    if type(draws) is not int or draws < 1:
        raise DGemmaError(f"draws must be an integer from 1 on, got {draws!r}")
    if run.tokenizer is None:
        raise DGemmaError("labels are texts, and the checkpoint has no tokenizer files; add tokenizer.json")
    pieces, is_open = parse_pieces(run.tokenizer, template)
    count = sum(piece.is_slot for piece in pieces)
    if count != len(labels) or not count:
        raise DGemmaError(
            f"template: it has {count} slots {{?}} for {len(labels)} lists of labels; give a slot for each"
        )
    end = run.settings.stops
    if is_open or not end:
        raise DGemmaError(
            "template: an answer to read needs an end; leave {} out, and use a checkpoint with a stop token"
        )
    slots = _slots(run.tokenizer, pieces, labels, end, run.model.config.canvas_length)
    for slot in slots:
        given = (token for token in slot.canvas if token is not None)
        check_vocabulary(run.model, chain(given, *slot.tokens))
    with memory.explained():
        p = _read(run, slots, draws)
    return [_softmax(own, _scores(slot, read)) for own, slot, read in zip(labels, slots, p, strict=True)]


def _check(labels: Sequence[str]) -> None:
    if isinstance(labels, str) or not isinstance(labels, Sequence) or len(labels) < 2:
        raise DGemmaError("there is nothing to choose from; give two labels or more")
    for i, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise DGemmaError(f"label {i + 1} is {label!r}; give a text that is not empty")
        if label in labels[:i]:
            raise DGemmaError(f"label {label!r} is given twice; give each once")


def _label_tokens(tokenizer: Tokenizer, spaces: str, labels: Sequence[str]) -> list[tuple[int, ...]]:
    """Each label's token ids, with the spaces before it."""
    found: dict[tuple[int, ...], str] = {}
    for label in labels:
        ids = tuple(encode(tokenizer, spaces + label, f"label {label!a}"))
        if not ids:
            raise DGemmaError(f"label {label!a} has no token in this checkpoint's vocabulary; leave it out")
        if ids in found:
            raise DGemmaError(f"labels {found[ids]!a} and {label!a} are the same tokens; leave one of them out")
        found[ids] = label
    return list(found)


def _slots(
    tokenizer: Tokenizer, pieces: list[Piece], labels: Sequence[Sequence[str]], end: Sequence[int], length: int
) -> list[_Slot]:
    """The slots in order, each with its canvas of `length` positions."""
    places = [i for i, piece in enumerate(pieces) if piece.is_slot]
    tokens = {i: _label_tokens(tokenizer, pieces[i].spaces, own) for i, own in zip(places, labels, strict=True)}
    free = {i: (None,) * max(map(len, tokens[i])) for i in places}
    slots = []
    for place in places:
        alternatives = []
        for own in tokens[place]:
            filled = {**free, place: own}
            ids = [t for i, piece in enumerate(pieces) for t in (filled[i] if piece.is_slot else piece.ids)]
            if len(ids) >= length:
                raise DGemmaError(f"template: with a label it has {len(ids)} tokens, one canvas holds {length - 1}")
            alternatives.append([*ids, *ending(tokenizer, len(ids), end, length)])
        slots.append(_slot(alternatives))
    return slots


def _slot(alternatives: Sequence[Sequence[int | None]]) -> _Slot:
    """What tells canvases apart, (L, C), None where they are free."""
    columns = list(zip(*alternatives, strict=True))
    # free positions of a gap may meet tokens of shorter alternatives: they are not read
    read = [i for i, column in enumerate(columns) if len(set(column)) > 1 and None not in column]
    canvas = tuple(column[0] if len(set(column)) == 1 else None for column in columns)
    read_tokens = [[t for i in read if (t := alternative[i]) is not None] for alternative in alternatives]
    return _Slot(canvas, read, read_tokens)


def likeliest(run: Run, cache: PrefixCache, beginnings: Sequence[Sequence[int]]) -> int:
    """Which of some texts' beginnings, token ids each, the model is surest of behind a prefix: its number."""
    length = run.model.config.canvas_length
    slot = _slot([[*ids, *[None] * (length - len(ids))] for ids in beginnings])
    noise = SeededNoise(run.request.seed, run.model.config.vocab_size).tokens((1, length))
    p = distributions(run.model, cache, _filled([slot.canvas], noise), [(0, at) for at in slot.positions])
    return int(_scores(slot, list(p)).argmax())


def _read(run: Run, slots: list[_Slot], draws: int) -> list[list[np.ndarray]]:
    """Distributions (V,) at the positions of each slot, averaged over the draws."""
    canvases = list(dict.fromkeys(slot.canvas for slot in slots))  # slots may share one
    at = [(canvases.index(slot.canvas), position) for slot in slots for position in slot.positions]
    noise, shape = run.noise(), (1, run.model.config.canvas_length)
    cache = run.prefix().cache.take([0] * len(canvases))
    drawn = [
        distributions(run.model, cache, _filled(canvases, mx.array(noise.tokens(shape))), at) for _ in range(draws)
    ]
    p = iter(np.mean(drawn, axis=0))
    return [[next(p) for _ in slot.positions] for slot in slots]


def _filled(canvases: list[Canvas], noise: mx.array) -> mx.array:
    """Ids (B, C), noise (1, C) where a canvas is free."""
    given = mx.array([[0 if token is None else token for token in canvas] for canvas in canvases])
    return mx.where(mx.array([[token is None for token in canvas] for canvas in canvases]), noise, given)


def distributions(
    model: DiffusionGemma, prefix: PrefixCache, canvas: mx.array, at: list[tuple[int, int]]
) -> np.ndarray:
    """Probabilities (N, V) at N (row, position) pairs, from one denoiser pass over ids (B, C)."""
    rows, positions = (mx.array(column) for column in zip(*at, strict=True))
    hidden = model.denoise_hidden(canvas, [prefix])[rows, positions]  # (N, H): logits of no other position are made
    p = mx.exp(sampling.log_probabilities(model.logits(hidden)))
    memory.finish([p])
    return np.array(p)


def _scores(slot: _Slot, p: list[np.ndarray]) -> np.ndarray:
    """Log-probability of each label, (L,)."""
    return np.array(
        [sum(np.log(max(own[t], 1e-37)) for own, t in zip(p, tokens, strict=True)) for tokens in slot.tokens]
    )


def _softmax(labels: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    weights = np.exp(scores - scores.max())
    return dict(zip(labels, (weights / weights.sum()).tolist(), strict=True))
