"""A request checked against a model: everything that can be refused is refused here, before any work."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.noise import Noise, SeededNoise
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.steering import Steering, steerings
from mlx_dgemma.diffusion.vocabulary import BLOCK
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.prompts import check_ids, prompt_ids
from mlx_dgemma.text.request import Request
from mlx_dgemma.text.template import given_and_draft


@dataclass(frozen=True, eq=False)
class Run:
    """What a run needs.

    Attributes:
        model, tokenizer, request: what it was made from.
        ids: the prompt's token ids.
        settings: complete, each the request's or else the checkpoint's.
        given: token ids by position of the text, None where the model fills in.
        steerings: of the first canvases, one each.
    """

    model: DiffusionGemma
    tokenizer: Tokenizer | None
    request: Request
    ids: list[int]
    settings: GenerationConfig
    given: Sequence[int | None]
    steerings: list[Steering]

    @property
    def max_canvases(self) -> int:
        return math.ceil(self.settings.max_new_tokens / self.model.config.canvas_length)

    def noise(self) -> Noise:
        """The request's own source, or a new one from its seed."""
        return self.request.noise or SeededNoise(self.request.seed, self.model.config.vocab_size)

    def prefix(self) -> tuple[PrefixCache, float]:
        """The prompt, encoded, and the seconds that took."""
        began = time.perf_counter()
        cache = self.model.make_cache()
        prefill(self.model, mx.array([self.ids]), cache)
        return cache, time.perf_counter() - began

    def is_last(self, canvas_index: int, cache: PrefixCache) -> bool:
        """Whether no canvas can follow this one, which is being denoised over that prefix."""
        has_room = cache.length + 2 * self.model.config.canvas_length <= self.model.config.max_position_embeddings
        return canvas_index + 1 == self.max_canvases or not has_room


def prepare(model: DiffusionGemma, tokenizer: Tokenizer | None, request: Request) -> Run:
    """Checks a request and turns it into what a run needs.

    Raises:
        DGemmaError: an empty or too long prompt, a token id outside the vocabulary, text without a tokenizer, a
            template or draft that cannot be used, more tokens than there are positions, more samples than fit memory.
    """
    dtype = model.embedding_scale.dtype
    if cpu.on_cpu() and dtype != mx.float32:
        name = str(dtype).removeprefix("mlx.core.")
        raise DGemmaError(
            f"the model was loaded for a GPU, in {name}, and MLX's default device is the CPU now; load it again"
        )
    if request.noise is not None and not isinstance(request.noise, Noise):
        raise DGemmaError(
            f"noise is a {type(request.noise).__name__}; give an object with tokens and uniform, or a seed"
        )
    settings = request.settings.over(model.generation_config)
    ids = prompt_ids(tokenizer, request.prompt, request.chat_template)
    check_ids(model, ids)
    size, plan = model.config.canvas_length, request.plan
    given, draft = given_and_draft(tokenizer, plan, settings.stops, size)
    _check_bounds(model, request, len(ids), len(given))
    steered = steerings(given, draft, plan.noise, plan.seed, size, model.config.vocab_size)
    settings = replace(settings, max_new_tokens=max(settings.max_new_tokens, len(given)))
    return Run(model, tokenizer, request, ids, settings, given, steered)


def _check_bounds(model: DiffusionGemma, request: Request, prompt: int, given: int) -> None:
    """Raises DGemmaError for what positions or memory do not hold; lengths are in tokens."""
    size, most = model.config.canvas_length, model.config.max_position_embeddings
    if prompt + math.ceil(given / size) * size > most:
        raise DGemmaError(
            f"canvas: {given} given tokens behind a prompt of {prompt} exceed max_position_embeddings ({most}); "
            "shorten it"
        )
    wanted = request.settings.max_new_tokens
    if "max_new_tokens" in request.settings.given and wanted > most:
        raise DGemmaError(f"max_new_tokens is {wanted}, more than max_position_embeddings ({most}); lower it")
    own, room = sample_bytes(model, prompt), memory.total()
    if request.samples > 1 and request.samples * own > room:
        raise DGemmaError(
            f"{request.samples} samples take about {request.samples * own // 10**9:,} GB, this machine has "
            f"{room // 10**9:,} GB; ask for at most {max(1, room // own)}"
        )


def sample_bytes(model: DiffusionGemma, prompt: int) -> int:
    """What a row of a batch takes, roughly: its prefix behind so many tokens, and its part of a step's workspace."""
    config, dtype = model.config, model.embedding_scale.dtype.size
    length = prompt + config.canvas_length
    prefix = 0
    for layer in config.layers:
        seen = length if layer.window is None else min(length, layer.window + config.canvas_length)
        prefix += 2 * layer.num_key_value_heads * layer.head_dim * seen * dtype
    block = 3 * min(BLOCK, config.vocab_size) * 4  # scores, exponentials, their products
    return prefix + config.canvas_length * (block + 16 * config.hidden_size * 4)
