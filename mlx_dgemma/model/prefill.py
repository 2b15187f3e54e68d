"""Prefill: a prompt or a committed canvas is encoded into the prefix, chunk by chunk.

The score matrices are bounded inside the attention (`scores`); a chunk bounds everything else, which grows with its
tokens, and is long enough that the experts' weights, all of which it reads, are worth reading.

A prompt may hold images. In its ids a negative one, the same at each of an image's positions, names it; an image is
read whole, as a segment of its own between chunks of text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import mlx.core as mx

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma

Sight = Callable[[], mx.array]  # what the tower makes of an image, (1, N, H)
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


def segments(
    model: DiffusionGemma, ids: Sequence[int], sights: Mapping[int, Sight], cache: PrefixCache,
    read: Callable[[mx.array], None] | None = None,
) -> Iterator[None]:  # fmt: skip
    """`chunks` of a prompt, whose negative ids name images.

    Raises:
        DGemmaError: a part of an image, or more than one.
    """
    cache.reserve(cache.length + len(ids) + model.config.canvas_length)
    for name, run in groupby(ids, key=lambda i: min(i, 0)):
        tokens = list(run)
        if name == 0:
            yield from chunks(model, mx.array([tokens]), cache, read=read)
            continue
        features = sights[name]()
        if features.shape[1] != len(tokens):
            raise DGemmaError(f"an image of {features.shape[1]} tokens stands in the prompt with {len(tokens)} ids")
        hidden = model.encode_image(features, cache)
        if read is not None:
            read(hidden)
        del hidden, features
        memory.finish(cache.arrays())
        mx.clear_cache()
        yield


def last_state(hidden: mx.array) -> mx.array:
    """The last of some hidden states, computed: (B, T, H) -> (B, 1, H), and no view that would keep all of them."""
    last = mx.contiguous(hidden[:, -1:])
    memory.finish([last])
    return last
