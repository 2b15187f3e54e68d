"""What only a CPU needs, in one place: who reads the Metal path can skip this file.

MLX's CPU multiplies gathered rows one by one, so rows are laid out in tiles of one expert. It computes a softmax on one
core, so blocks of scores take turns on two streams. It allocates an operation's output when it is queued, and queues up
to 100 operations, so evaluation runs under a memory limit, which makes it wait for work to finish instead.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_dgemma.model.limits import SharedLimit

TILE = 16  # rows of one expert that are multiplied at a time
SCORE_BYTES = 16 << 20  # of the scores of the blocks that are alive at a time
LANES_FROM = 4 << 20  # bytes of scores, from which they are computed in two blocks at a time
WORKSPACE_BYTES = 32 << 20  # that an evaluation may allocate before it waits
PREFILL_CHUNK = 512  # tokens
_LIMIT = SharedLimit(lambda nbytes: mx.set_memory_limit(nbytes))


def on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


def in_tiles(
    run: Callable[[mx.array, mx.array], mx.array], rows: mx.array, token: mx.array, experts: mx.array, count: int,
    back: mx.array,
) -> mx.array:  # fmt: skip
    """Sends rows through their experts in tiles.

    Args:
        run: rows (N, TILE, H), each tile through one of the experts (N) -> (N, TILE, H).
        rows: (T, H).
        token: which row each of P pairs takes, (P).
        experts: its expert, ascending, (P).
        count: of experts.
        back: the order in which the pairs' results are returned, (P).

    Returns:
        (P, H).
    """
    slots, tile_experts = tiles(experts, count)
    padded = mx.zeros((tile_experts.size * TILE,), token.dtype)
    padded[slots] = token
    out = run(rows[padded].reshape(-1, TILE, rows.shape[-1]), tile_experts)
    return out.reshape(-1, out.shape[-1])[slots[back]]


def tiles(experts: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Lays rows sorted by expert out in tiles of TILE rows of one expert each; shapes do not depend on the values.

    Returns:
        The slot of each row (N), and the expert of each tile (N // TILE + count, of which the last may be empty).
    """
    sizes = (experts[:, None] == mx.arange(count)).sum(axis=0)  # rows per expert
    used = (sizes + TILE - 1) // TILE  # tiles per expert
    ends = mx.cumsum(used)
    shift = (ends - used) * TILE - (mx.cumsum(sizes) - sizes)  # from a row's place to its slot
    slots = mx.arange(experts.size) + shift[experts]
    number = mx.arange(experts.size // TILE + count)
    return slots, mx.minimum((ends[None] <= number[:, None]).sum(axis=-1), count - 1)


def lanes() -> tuple[mx.Stream | mx.ThreadLocalStream, ...]:
    """Streams that blocks of work take in turn: two of a CPU, one of a GPU."""
    first = mx.default_stream(mx.default_device())
    return (first, _second_lane()) if on_cpu() else (first,)


@functools.cache
def _second_lane() -> mx.ThreadLocalStream:
    return mx.new_thread_local_stream(mx.cpu)  # another stream in each thread: a plain one works in its own only


def score_rows(length: int, row_bytes: int) -> int:
    """Rows of `length` queries, each with so many bytes of scores, that one block takes."""
    if length * row_bytes > LANES_FROM:
        length = -(-length // len(lanes()))
    return max(1, min(length, SCORE_BYTES // len(lanes()) // row_bytes))


@contextmanager
def bounded_workspace(rows: int = 1) -> Iterator[None]:
    """Bounds what an evaluation allocates beyond what is alive; on a GPU command buffers of 50 MB bound the same."""
    if not on_cpu():
        yield
        return
    with _LIMIT.held(mx.get_active_memory() + rows * WORKSPACE_BYTES):
        yield
