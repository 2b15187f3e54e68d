"""Adaptive stopping: a canvas is done once it is stable and confident.

Source: transformers, StableAndConfidentStoppingCriteria.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma.diffusion.strategies import Step


def is_stable(draft: mx.array, earlier: Sequence[mx.array], stability_threshold: int) -> mx.array:
    """Whether a draft (B, C) equals those of the last `stability_threshold` steps, oldest first -> bool (B,)."""
    if len(earlier) < stability_threshold:
        return mx.zeros(draft.shape[:1], mx.bool_)
    stable = mx.ones(draft.shape[:1], mx.bool_)
    for before in earlier[len(earlier) - stability_threshold :]:
        stable = stable & (before == draft).all(axis=-1)
    return stable


@dataclass(frozen=True)
class StableAndConfident:
    """Stops a row when its draft equals those of the previous `stability_threshold` steps and its mean entropy is below
    `confidence_threshold` nats.
    """

    stability_threshold: int
    confidence_threshold: float

    def __call__(self, step: Step) -> mx.array:
        drafts = [before.draft for before in step.earlier]
        is_confident = step.mean_entropy < self.confidence_threshold
        return is_confident & is_stable(step.draft, drafts, self.stability_threshold)
