"""Prefill: a prompt or a committed canvas is encoded into the prefix, chunk by chunk.

The score matrices are bounded inside the attention (`scores`); a chunk bounds everything else, which grows with its
tokens, and is long enough that the experts' weights, all of which it reads, are worth reading.
"""

from collections.abc import Callable, Iterator

import mlx.core as mx

from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma

CHUNK = 2048  # tokens, on a GPU; on Metal, "causal" from 1,024 on is bounded by MLX itself at head_dim 512


def prefill(model: DiffusionGemma, tokens: mx.array, cache: PrefixCache, chunk: int | None = None) -> None:
    """Encodes ids (B, T) into the prefix and evaluates it; makes room for T and one canvas once, not chunk by chunk."""
    for _ in chunks(model, tokens, cache, chunk):
        pass


def chunks(
    model: DiffusionGemma, tokens: mx.array, cache: PrefixCache, chunk: int | None = None,
    read: Callable[[mx.array], None] | None = None,
) -> Iterator[None]:  # fmt: skip
    """`prefill`, chunk by chunk; `read` gets the hidden states of each, (B, T, H), and computes what it wants."""
    cache.reserve(cache.length + tokens.shape[1] + model.config.canvas_length)
    chunk = chunk or (cpu.PREFILL_CHUNK if cpu.on_cpu() else CHUNK)
    for start in range(0, tokens.shape[1], chunk):
        hidden = model.encode(tokens[:, start : start + chunk], cache)
        if read is not None:
            read(hidden)
        del hidden  # as long as it is held, and with it the prefix of its graph, the next write copies that
        memory.finish(cache.arrays())
        mx.clear_cache()
        yield


def last_state(hidden: mx.array) -> mx.array:
    """The last of some hidden states, computed: (B, T, H) -> (B, 1, H), and no view that would keep all of them."""
    last = mx.contiguous(hidden[:, -1:])
    memory.finish([last])
    return last
