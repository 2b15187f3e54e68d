"""What a denoising loop tells: every step, and every canvas when it is committed."""

from dataclasses import dataclass, field

import mlx.core as mx

from mlx_dgemma.diffusion.alternatives import Alternatives
from mlx_dgemma.diffusion.work import Work


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
        log_p: log-probability of the draft's tokens, tempered, nats; of a finished row, when it finished.
        accepted: bool per position.
        accepted_count: positions accepted, over all rows.
        mean_entropy: nats, over all positions.
        finished: whether the canvas is done.
        clamped: bool per position, the ones that a steered canvas keeps fixed; None where nothing is.
        finished_rows: by row, whether it is done; () when replayed from a trace, which does not keep it.
        alternatives: the likeliest ids and their log-probabilities, (B, C, K), if any were asked for; not replayed.
        computed: the positions that this step computed, ascending; the others had settled. None for all of them.
        work: what was computed.
    """

    canvas_index: int
    step: int
    remaining: int
    temperature: float
    canvas: mx.array
    draft: mx.array
    entropy: mx.array
    log_p: mx.array
    accepted: mx.array
    accepted_count: int
    mean_entropy: float
    finished: bool
    clamped: mx.array | None = None
    finished_rows: tuple[bool, ...] = ()
    alternatives: Alternatives | None = None
    computed: tuple[int, ...] | None = None
    work: Work = field(default_factory=Work)


@dataclass(frozen=True)
class CommittedCanvas:
    """A finished canvas: its argmax ids (B, C), the number of denoising steps it took, and what they computed."""

    canvas_index: int
    tokens: mx.array
    steps: int
    work: Work = field(default_factory=Work)
