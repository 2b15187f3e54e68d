"""Prefill: a prompt or a committed canvas is encoded into the prefix, chunk by chunk.

The score matrices are bounded inside the attention (`scores`); a chunk bounds everything else, which grows with its
tokens, and is long enough that the experts' weights, all of which it reads, are worth reading.
"""

from collections.abc import Iterator

import mlx.core as mx

from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma

CHUNK = 2048  # tokens, on a GPU; on Metal, "causal" from 1,024 on is bounded by MLX itself at head_dim 512


def prefill(model: DiffusionGemma, tokens: mx.array, cache: PrefixCache, chunk: int | None = None) -> None:
    """Encodes ids (B, T) into the prefix and evaluates it; makes room for T and one canvas once, not chunk by chunk."""
    for _ in chunks(model, tokens, cache, chunk):
        pass


def chunks(model: DiffusionGemma, tokens: mx.array, cache: PrefixCache, chunk: int | None = None) -> Iterator[None]:
    """`prefill`, chunk by chunk."""
    cache.reserve(cache.length + tokens.shape[1] + model.config.canvas_length)
    chunk = chunk or (cpu.PREFILL_CHUNK if cpu.on_cpu() else CHUNK)
    for start in range(0, tokens.shape[1], chunk):
        model.encode(tokens[:, start : start + chunk], cache)
        memory.finish(cache.arrays())
        mx.clear_cache()
        yield
