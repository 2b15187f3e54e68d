"""Attention with bounded score matrices, at scale 1.

MLX has no fused kernel for 256 canvas queries at head_dim 256 or 512, nor for a prompt's on a CPU or under CUDA: the
scores are arrays. So queries are taken in blocks of rows whose scores fit SCORE_BYTES, however long the prefix is, and
each block reads only the keys that it can see. A fused kernel is used where there is one and the scores would not fit.

Shapes: q (B, heads, T, D); keys and values (B, kv_heads, S, D), of which the last T are the queries' own.
"""

import functools
from collections.abc import Callable

import mlx.core as mx

from mlx_dgemma.model import cpu

Attend = Callable[[mx.array, mx.array, mx.array, int | None], mx.array]  # queries, keys, values, window
SCORE_BYTES = 128 << 20  # of the scores of a block, on a GPU
BAND_ROWS = 256  # rows per block under a sliding window: each reads window + 255 keys
MLX_BOUNDS_FROM = 1024  # causal half-precision queries at head_dim 512, from which MLX bounds the scores on Metal


def attend_all(q: mx.array, keys: mx.array, values: mx.array, window: int | None = None) -> mx.array:
    """Every query sees every key (denoiser mode), whatever the window -> (B, heads, T, D)."""
    batch, heads, length, head_dim = q.shape
    kv_heads = keys.shape[1]
    # no order among the queries: those of the heads that share keys become rows of one product, which reads them once
    folded = q.reshape(batch, kv_heads, heads // kv_heads * length, head_dim)
    rows = _rows(folded, keys.shape[2])
    if rows < folded.shape[2] and has_fused_kernel(head_dim, q.dtype, None):
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, force_fused=True)
    return _in_blocks(folded, rows, lambda block, start: plain(block, keys, values)).reshape(q.shape)


def attend_causally(q: mx.array, keys: mx.array, values: mx.array, window: int | None) -> mx.array:
    """Query i sees the keys up to its own, at most `window` of them (encoder mode) -> (B, heads, T, D)."""
    length, visible = q.shape[2], keys.shape[2]
    band = window if window is not None and visible > window else None
    if band is None and _mlx_bounds(q):
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask="causal")
    if band is None and _rows(q, visible) < length and has_fused_kernel(q.shape[3], q.dtype, "causal"):
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask="causal", force_fused=True)

    def attend(block: mx.array, start: int) -> mx.array:
        end = visible - length + start + block.shape[2]
        first = 0 if band is None else max(0, end - block.shape[2] - band + 1)
        mask = causal_mask(block.shape[2], end - first, window)
        k, v = keys[:, :, first:end], values[:, :, first:end]
        return mx.fast.scaled_dot_product_attention(block, k, v, scale=1.0, mask=mask)

    rows = _rows(q, visible) if band is None else min(_rows(q, min(visible, band + BAND_ROWS)), BAND_ROWS)
    return _in_blocks(q, rows, attend)


def attend_image(q: mx.array, keys: mx.array, values: mx.array, window: int | None) -> mx.array:
    """The tokens of an image see all of it, and of what stands before it what a window lets them -> (B, heads, T, D).

    As transformers' DiffusionGemma has it; Gemma 4 there, and Google's JAX, have `attend_image_in_window`.
    """
    return _attend_image(q, keys, values, window, is_whole=True)


def attend_image_in_window(q: mx.array, keys: mx.array, values: mx.array, window: int | None) -> mx.array:
    """In sliding layers the tokens of an image see what follows in it, and no further back than the window; full layers
    are causal -> (B, heads, T, D)."""
    if window is None:
        return attend_causally(q, keys, values, None)
    return _attend_image(q, keys, values, window, is_whole=False)


IMAGE_MASKS: dict[str, Attend] = {"reference": attend_image, "google": attend_image_in_window}


def _attend_image(
    q: mx.array, keys: mx.array, values: mx.array, window: int | None, *, is_whole: bool
) -> mx.array:  # fmt: skip
    length, visible = q.shape[2], keys.shape[2]
    if window is None or visible <= window:
        return attend_all(q, keys, values)
    key, begin = mx.arange(visible)[None], visible - length

    def attend(block: mx.array, start: int) -> mx.array:
        query = mx.arange(begin + start, begin + start + block.shape[2])[:, None]
        mask = query - key < window
        mask = mask | (key >= begin) if is_whole else mask
        return mx.fast.scaled_dot_product_attention(block, keys, values, scale=1.0, mask=mask)

    return _in_blocks(q, _rows(q, visible), attend)


def _in_blocks(q: mx.array, rows: int, attend: Callable[[mx.array, int], mx.array]) -> mx.array:
    """attend(block, start) for blocks of so many rows, joined; as many blocks at a time as there are lanes."""
    lanes = cpu.lanes()
    out: list[mx.array] = []
    for i, start in enumerate(range(0, q.shape[2], rows)):
        with mx.stream(lanes[i % len(lanes)]):
            block = q[:, :, start : start + rows]
            if i >= len(lanes):  # or MLX would compute the scores of all of them first
                block = mx.depends([block], [out[i - len(lanes)]])[0]
            out.append(attend(block, start))
    return out[0] if len(out) == 1 else mx.concatenate(out, axis=2)


def plain(q: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """softmax(q kᵀ) v with whole score matrices: (B, G, M, D) and (B, G, S, D) twice -> (B, G, M, D)."""
    return mx.softmax(q @ keys.swapaxes(-1, -2), axis=-1, precise=True) @ values


def causal_mask(length: int, visible: int, window: int | None) -> mx.array | str | None:
    """Mask for `length` queries, the last of `visible` keys; an array only where the window cuts something off.

    window 3, 2 earlier keys, 3 queries with their own:

        1 1 1 0 0
        0 1 1 1 0
        0 0 1 1 1
    """
    if window is None or visible <= window:
        return "causal" if length > 1 else None
    distance = mx.arange(visible - length, visible)[:, None] - mx.arange(visible)[None]
    return (distance >= 0) & (distance < window)


@functools.cache
def has_fused_kernel(head_dim: int, dtype: mx.Dtype, mask: str | None) -> bool:
    """Whether MLX has a fused kernel here, which it only tells when asked to build one, and whether it is right.

    It is compared with the plain way on a small input: kernels at these head sizes have been wrong before.
    """
    keys = [mx.random.normal((1, 1, 300, head_dim), key=mx.random.key(i)).astype(dtype) for i in range(3)]
    q, k, v = keys[0] * head_dim**-0.5, keys[1], keys[2]
    try:
        fused = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask, force_fused=True)
        whole = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)
        return bool((mx.abs(fused - whole).astype(mx.float32).max() < 0.02).item())
    except (ValueError, RuntimeError):
        return False


def _mlx_bounds(q: mx.array) -> bool:
    return mx.metal.is_available() and q.dtype != mx.float32 and q.shape[2] >= MLX_BOUNDS_FROM and q.shape[3] == 512


def _rows(q: mx.array, visible: int) -> int:
    """Rows of queries (all heads at once) whose scores fit their share of SCORE_BYTES."""
    batch, heads, length, _ = q.shape
    row_bytes = batch * heads * visible * q.dtype.size
    if cpu.on_cpu():
        return cpu.score_rows(length, row_bytes)
    return max(1, min(length, SCORE_BYTES // row_bytes))
