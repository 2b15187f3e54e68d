"""Adaptive stopping: a canvas is done once it is stable and confident.

Source: transformers, StableAndConfidentStoppingCriteria.
"""

from dataclasses import dataclass, field

import mlx.core as mx


@dataclass
class StableAndConfident:
    """Stops a row when its argmax canvas equals that of the previous `stability_threshold` steps and its mean entropy
    is below `confidence_threshold` nats. One object a canvas: it remembers the argmax canvases it was shown.
    """

    stability_threshold: int
    confidence_threshold: float
    history: list[mx.array] = field(default_factory=list)

    def __call__(self, argmax: mx.array, mean_entropy: mx.array) -> mx.array:
        """argmax (B, C) ids and mean entropy (B,) in nats of this step -> bool (B,)."""
        stop = mean_entropy < self.confidence_threshold
        if len(self.history) < self.stability_threshold:
            stop = mx.zeros_like(stop)
        for earlier in self.history:
            stop = stop & (earlier == argmax).all(axis=-1)
        self.history = [*self.history, argmax][1 if len(self.history) == self.stability_threshold else 0 :]
        return stop
