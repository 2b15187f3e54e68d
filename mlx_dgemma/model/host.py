"""What MLX's stubs leave out: its version, and the types of small arrays on the host."""

from typing import cast

import mlx.core as mx

MLX_VERSION: str = mx.__version__  # type: ignore[attr-defined]  # the stub does not name it


def ints(vector: mx.array) -> list[int]:
    """Ids or counts, (N,)."""
    return cast(list[int], vector.tolist())


def floats(vector: mx.array) -> list[float]:
    """Numbers, (N,)."""
    return cast(list[float], vector.tolist())


def flags(vector: mx.array) -> list[bool]:
    """Truth values, (N,)."""
    return cast(list[bool], vector.tolist())
