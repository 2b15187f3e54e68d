"""The meter: what denoising steps computed, counted as it is asked for. Nothing here is measured in time."""

from __future__ import annotations

from dataclasses import dataclass

# Shares of a full step's operations at the published model's sizes (python -m mlx_dgemma.roofline): the body, which is
# layers and self-conditioning, the scores over the vocabulary, the soft embeddings; and the encoding of a canvas.
BODY, SCORES, SOFT, COMMIT = 0.678, 0.161, 0.161, 0.65


@dataclass(frozen=True)
class Work:
    """What one or more denoising steps computed.

    Attributes:
        rows: canvas positions that went through the body.
        scored: positions × ids whose scores were computed.
        mixed: positions × ids that went into soft embeddings.
    """

    rows: int = 0
    scored: int = 0
    mixed: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.rows + other.rows, self.scored + other.scored, self.mixed + other.mixed)

    def share(self, rows: int) -> Work:
        """What one of so many rows of a batch took."""
        return Work(self.rows // rows, self.scored // rows, self.mixed // rows)

    def full_steps(self, canvas: int, vocabulary: int) -> float:
        """In full steps of a canvas of so many positions, at the published model's cost split."""
        ids = canvas * vocabulary
        return BODY * self.rows / canvas + SCORES * self.scored / ids + SOFT * self.mixed / ids
