"""This process (rank) among those that compute together, and what they tell each other.

MLX is lazy: what is behind an exchange has to be evaluated on every rank, in the same order, or ranks wait for each
other and never meet.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import host


class Ranks:
    """One rank of a group.

    Attributes:
        group: MLX's, of all of them.
        rank, size: which one this is, of how many.
    """

    def __init__(self, group: mx.distributed.Group):
        self.group = group
        self.rank, self.size = group.rank(), group.size()

    def all_gather(self, x: mx.array) -> mx.array:
        """x of every rank, one after another along the first axis."""
        return mx.distributed.all_gather(x, group=self.group)

    def all_sum(self, x: mx.array) -> mx.array:
        """The sum of every rank's x, the same bits everywhere."""
        return mx.distributed.all_sum(x, group=self.group)

    def numbers(self, own: int) -> list[int]:
        """Every rank's number, known at once; all ranks have to ask."""
        return host.ints(self.all_gather(mx.array([own])))

    def go_on(self) -> None:
        """All ranks go on, or none does.

        Raises:
            DGemmaError: another rank has stopped.
        """
        flags = self.numbers(0)
        if any(flags):
            raise DGemmaError(f"rank {flags.index(1)} has stopped; all ranks end together")

    def stop(self) -> None:
        """This rank does not go on; the others learn it when they would."""
        self.numbers(1)


def joined(ranks: Ranks, x: mx.array, counts: Sequence[int]) -> mx.array:
    """Every rank's rows, one rank after another, of which each has so many: (R, …) -> (n, …)."""
    x, most = mx.contiguous(x), max(counts)
    if len(x) < most:  # all send alike
        x = mx.pad(x, [(0, most - len(x))] + [(0, 0)] * (x.ndim - 1))
    parts = mx.split(ranks.all_gather(x), ranks.size)
    return mx.concatenate([own[:count] for own, count in zip(parts, counts, strict=True)])
