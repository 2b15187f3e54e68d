"""Repair of a denoised canvas: tokens that the causal mode does not believe are denoised again (an experiment, E8).

The causal mode reads the canvas as it stands. Tokens that it finds far less likely than others in their places, and
that the denoiser settled late or unsurely, are replaced by noise; two further steps denoise them between all others,
which stay. What comes of it is kept if the causal mode finds the whole canvas likelier. Costs two passes of the encoder
with a head and two steps for each canvas with suspects, one pass for the others.
"""

from collections.abc import Generator
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.canvas import refine
from mlx_dgemma.diffusion.denoiser import Pause
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.shared import make_denoiser
from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.text.causal import Causal
from mlx_dgemma.text.transcript import Committed

GAP = 7.0  # nats by which a token is less likely than the likeliest in its place, from which it is not believed
RECENT = 3  # steps, within which a token that changed is no settled one
MOST = 16  # suspects of a canvas
STEPS = 2  # that denoise them


def suspects(gap: np.ndarray, changed: np.ndarray, entropy: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Positions to denoise again, the least believed first; at most MOST.

    Args:
        gap: nats by which the causal mode finds each token less likely than the likeliest in its place, (C,).
        changed: which tokens changed within the last RECENT steps, bool (C,).
        entropy: of the denoiser in the last step, nats, (C,).
        free: which tokens are the model's own, and not given, bool (C,).
    """
    unsure = changed | (entropy > np.median(entropy))
    found: np.ndarray = np.flatnonzero((gap > GAP) & unsure & free)
    return found[np.argsort(-gap[found], kind="stable")][:MOST]


class Repair:
    """What the last steps of a canvas were, and what is made of it."""

    def __init__(self, settings: GenerationConfig):
        self._settings = GenerationConfig(max_denoising_steps=STEPS).over(settings)
        self._steps: list[DenoisingStep] = []

    def note(self, step: DenoisingStep) -> None:
        """A step of the canvas that is denoised."""
        earlier = self._steps if step.step > 1 else []
        self._steps = [*earlier, step][-RECENT - 1 :]

    def repaired(self, canvas: Committed, causal: Causal) -> Generator[Pause, None, Committed]:
        """A canvas whose steps were noted, repaired where the causal mode finds that likelier."""
        log_p, best = causal.judge(canvas.tokens)
        places = self._suspects(np.array(best) - np.array(log_p))
        if not len(places):
            return canvas
        again = yield from self._denoised(canvas, causal, places)
        if sum(causal.judge(again.tokens)[0]) <= sum(log_p):
            return replace(canvas, steps=again.steps)
        return again

    def _suspects(self, gap: np.ndarray) -> np.ndarray:
        last = self._steps[-1]
        drafts = np.array([np.array(step.draft[0]) for step in self._steps])  # (≤ RECENT + 1, C)
        changed = (drafts != drafts[-1]).any(axis=0)
        free = np.ones_like(changed) if last.clamped is None else ~np.array(last.clamped[0])
        return suspects(gap, changed, np.array(last.entropy[0]), free)

    def _denoised(
        self, canvas: Committed, causal: Causal, places: np.ndarray
    ) -> Generator[Pause, None, Committed]:  # fmt: skip
        """The canvas with these places denoised from noise between all others."""
        free = np.zeros(len(canvas.tokens), bool)
        free[places] = True
        steering = Steering(mx.array([canvas.tokens]), mx.array(~free)[None])
        denoiser, shape = make_denoiser(causal.model, causal.cache), (1, len(canvas.tokens))
        steps, last = canvas.steps, self._steps[-1]
        for event in refine(denoiser, self._settings, causal.noise, shape, last.canvas_index, steering):
            if isinstance(event, DenoisingStep):  # no step of the canvas that is shown: it has no place in its count
                last, steps = event, steps + 1
            else:
                yield event
        tokens, log_p, entropy = (
            np.where(free, np.array(own[0]), before).tolist()
            for own, before in ((last.draft, canvas.tokens), (last.log_p, canvas.log_p), (last.entropy, canvas.entropy))
        )
        return replace(canvas, tokens=tokens, steps=steps, log_p=log_p, entropy=entropy)
