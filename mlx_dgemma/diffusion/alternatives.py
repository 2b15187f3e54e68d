"""The likeliest ids of a position, found block by block, and what they are told as."""

import mlx.core as mx

from mlx_dgemma.model import fused

Alternatives = tuple[mx.array, mx.array]  # ids and log-probabilities, (B, C, K) both, likeliest first
_LOWEST = mx.array(-mx.inf)


def likeliest(logits: mx.array, count: int, first: int) -> tuple[mx.array, ...]:
    """The likeliest ids of a block that begins at id `first`, and their logits, in any order; () if none are wanted."""
    if not count:
        return ()
    count = min(count, logits.shape[-1])
    places = mx.argpartition(logits, -count, axis=-1)[..., -count:]
    return places + first, mx.take_along_axis(logits, places, axis=-1)


def ranked(
    ids: mx.array, logits: mx.array, count: int, cap: mx.array, temperature: mx.array,
    relative: tuple[mx.array, mx.array],
) -> Alternatives:  # fmt: skip
    """The likeliest of what several blocks found; of all, the highest score and Σ exp(score − it), (B, C, 1) both."""
    order = mx.argsort(-logits, axis=-1)[..., :count]
    ids, logits = (mx.take_along_axis(own, order, axis=-1) for own in (ids, logits))
    maximum, total = relative
    return ids, fused.tempered_max(logits, _LOWEST, cap, temperature) - maximum - mx.log(total)
