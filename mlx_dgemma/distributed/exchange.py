"""What ranks tell each other outside of forward passes: evaluated at once, by all ranks in the same order."""

import json
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dgemma.model import host


class Exchange:
    """Talks among the ranks of a group. Every rank has to make the same calls in the same order."""

    def __init__(self, group: mx.distributed.Group):
        self.group, self.rank, self.size = group, group.rank(), group.size()

    def numbers(self, own: float) -> list[float]:
        """Every rank's number, rounded to float32."""
        return host.floats(mx.distributed.all_gather(mx.array([own], mx.float32), group=self.group))

    def texts(self, own: bytes) -> list[bytes]:
        """Every rank's bytes."""
        lengths = host.ints(mx.distributed.all_gather(mx.array([len(own)], mx.int32), group=self.group))
        most = max(lengths)
        if not most:
            return [b""] * self.size
        padded = np.zeros(most, np.uint8)
        padded[: len(own)] = np.frombuffer(own, np.uint8)
        rows = np.array(mx.distributed.all_gather(mx.array(padded)[None], group=self.group))
        return [rows[rank, :length].tobytes() for rank, length in enumerate(lengths)]

    def from_first(self, own: bytes) -> bytes:
        """Rank 0's bytes, whatever the others have."""
        return self.texts(own if self.rank == 0 else b"")[0]

    def objects(self, own: Any) -> list[Any]:
        """Every rank's value, of what JSON holds."""
        return [json.loads(text) for text in self.texts(json.dumps(own).encode())]
