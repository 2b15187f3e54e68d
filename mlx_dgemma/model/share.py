"""Several processes, each with all weights, that compute positions of the same forward pass: canvas parallelism.

Each process (rank) takes its positions through the layers and sends their keys and values, which every other one needs;
nothing else is exchanged inside the layers. So every number is computed once and sent, and ranks agree bit for bit
whatever machines they run on.

Of a canvas a rank owns the same positions in every step, dealt out one by one, so that what settles or is absent leaves
all ranks alike with less to do, and soft embeddings, which only their position needs, stay where they are. Of a prompt
it takes a block, as what is causal is cheapest in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import mlx.core as mx

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.attention import Extend
from mlx_dgemma.model.ranks import Ranks, joined

Counts = Sequence[int]


@dataclass(frozen=True, eq=False)
class Part:
    """One rank's rows of a pass over n of them.

    Attributes:
        share: among whom.
        own: (R,), which rows are this rank's. At least one: where it has none it computes the first, for nobody.
        counts: how many rows each rank has.
        order: (n,), where in the ranks' rows, one rank after another, each row is; None if they are in order.
    """

    share: "Share"
    own: mx.array
    counts: Counts
    order: mx.array | None

    def gathered(self, x: mx.array) -> mx.array:
        """Every rank's rows in their order: (R, …) -> (n, …)."""
        rows = joined(self.share, x, self.counts)
        return rows if self.order is None else rows[self.order]

    def keys_and_values(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Those of all rows, in one exchange: (B, kv_heads, R, D) -> (B, kv_heads, n, D), both."""
        both = mx.concatenate([k, v], axis=1).transpose(2, 0, 1, 3)
        k, v = mx.split(self.gathered(both).transpose(1, 2, 0, 3), 2, axis=1)
        return k, v

    def columns(self, x: mx.array) -> mx.array:
        """Those of all rows, which are the second axis: (B, R, …) -> (B, n, …)."""
        return self.gathered(x.swapaxes(0, 1)).swapaxes(0, 1)


class Share(Ranks):
    """A process among those that share forward passes.

    Attributes:
        weights: how much of the work each takes, relative to the others.
    """

    def __init__(self, group: mx.distributed.Group, weights: Sequence[int] = ()):
        super().__init__(group)
        self.weights = list(weights) or [1] * self.size
        if len(self.weights) != self.size or min(self.weights) < 1:
            told = ",".join(map(str, self.weights))
            raise DGemmaError(f"shares {told} are not {self.size} whole numbers from 1 on, one of each process")
        self._owners: list[int] = []
        self._dealt = [0] * self.size

    def block(self, rows: int) -> tuple[Part, int] | None:
        """This rank's part of rows that are computed in order, and where it ends; None if there is none for each."""
        whole = sum(self.weights)
        ends = [rows * total // whole for total in accumulate(self.weights)]
        counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        if not all(counts):
            return None
        end = ends[self.rank]
        return Part(self, mx.arange(end - counts[self.rank], end), counts, None), end

    def positions(self, at: Sequence[int]) -> Part:
        """This rank's part of some positions of a canvas, which are ascending."""
        owners = [self.owner(position) for position in at]
        rows: list[list[int]] = [[] for _ in range(self.size)]
        for row, owner in enumerate(owners):
            rows[owner].append(row)
        dealt = [row for own in rows for row in own]
        order = mx.array(sorted(range(len(dealt)), key=dealt.__getitem__))
        return Part(self, mx.array(rows[self.rank] or [0]), [len(own) for own in rows], order)

    def owner(self, position: int) -> int:
        """The rank that computes a position of a canvas: whoever is furthest behind its share when it is dealt."""
        while len(self._owners) <= position:
            count, whole = len(self._owners) + 1, sum(self.weights)
            behind = [weight * count - dealt * whole for weight, dealt in zip(self.weights, self._dealt, strict=True)]
            rank = behind.index(max(behind))
            self._owners.append(rank)
            self._dealt[rank] += 1
        return self._owners[position]


def up_to(extend: Extend, missing: int) -> Extend:
    """`extend`, of whose keys and values the last ones are not seen yet."""

    def cut(k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        keys, values = extend(k, v)
        end = keys.shape[2] - missing
        return keys[:, :, :end], values[:, :, :end]

    return cut if missing else extend
