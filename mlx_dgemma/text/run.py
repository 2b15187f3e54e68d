"""A request checked against a model: everything that can be refused is refused here, before any work."""

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.denoiser import Pause, finished, pauses
from mlx_dgemma.diffusion.noise import Noise, SeededNoise
from mlx_dgemma.diffusion.rows import check_settings
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.steering import Steering, steerings
from mlx_dgemma.diffusion.vocabulary import BLOCK
from mlx_dgemma.errors import ContextOverflow, DGemmaError
from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import last_state, segments
from mlx_dgemma.text.forced import callable_names, opening_of
from mlx_dgemma.text.formats import Format, format_of, with_form
from mlx_dgemma.text.grammar import fixed_texts
from mlx_dgemma.text.images import Picture
from mlx_dgemma.text.messages import normalised
from mlx_dgemma.text.pictures import Seen, Sights, see
from mlx_dgemma.text.prefixes import PrefixStore, turn_ends
from mlx_dgemma.text.prompts import check_ids, encode, prompt_ids
from mlx_dgemma.text.reply import ToolCall
from mlx_dgemma.text.request import CanvasPlan, Prompt, Request
from mlx_dgemma.text.template import given_and_draft
from mlx_dgemma.text.turns import Turn, Turns

WAITS = "<|tool_response>"  # ends a turn that calls
MAX_TOKENS = 8192  # of an answer whose length was not given


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prompt that was encoded.

    Attributes:
        cache: what there is of it.
        seconds: that encoding took.
        cached_tokens: how many of its tokens were remembered.
        image_seconds: of these, what the tower took to see images.
        last: the hidden state behind its last token, (1, 1, H), for requests that read causally; None for others.
    """

    cache: PrefixCache
    seconds: float
    cached_tokens: int
    image_seconds: float = 0.0
    last: mx.array | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """What a run needs.

    Attributes:
        model, tokenizer, request: what it was made from.
        ids: the prompt's token ids; an image has its token's at each of its positions.
        names: the same, but an image has its name there, see `text.pictures`.
        pictures: the prompt's images.
        settings: complete, each the request's or else the checkpoint's.
        given: token ids by position of the text, None where the model fills in.
        steerings: of the first canvases, one each.
        callable: names of the tools of which one has to be called; none if the model decides.
        rendered: the prompt's names as the template wrote them, where `names` hold a turn's own.
        turns: where a turn that ends in calls is kept.
        prefixes: what remembers prompts that were encoded.
        form: that the answer has to have; None if it may have any.
    """

    model: DiffusionGemma
    tokenizer: Tokenizer | None
    request: Request
    ids: list[int]
    names: list[int]
    pictures: Sequence[Picture]
    settings: GenerationConfig
    given: Sequence[int | None]
    steerings: list[Steering]
    callable: Sequence[str] = ()
    rendered: Sequence[int] = ()
    turns: Turns | None = None
    prefixes: PrefixStore | None = None
    form: Format | None = None

    @property
    def max_canvases(self) -> int:
        return math.ceil(self.settings.max_new_tokens / self.model.config.canvas_length)

    def noise(self) -> Noise:
        """The request's own source, or a new one from its seed."""
        return self.request.noise or SeededNoise(self.request.seed, self.model.config.vocab_size)

    def prefix(self) -> Prefix:
        """The prompt, encoded, as far as it was not remembered."""
        return finished(self.encode())

    def encode(self) -> Generator[Pause, None, Prefix]:
        """`prefix`, which gives way to others between chunks."""
        began, cached = time.perf_counter(), 0
        sights = Sights(self.model, self.pictures)
        last: list[mx.array] = []

        def keep_last(hidden: mx.array) -> None:
            last[:] = [last_state(hidden)]

        read = keep_last if self.request.is_read_causally else None
        if self.prefixes is None:
            cache = self.model.make_cache()
            yield from pauses(segments(self.model, self.names, sights, cache, read=read))
        else:
            ends = turn_ends(self.tokenizer, self.ids)
            cache, cached = yield from self.prefixes.encode(self.model, self.names, ends, read, sights)
        return Prefix(cache, time.perf_counter() - began, cached, sights.seconds, *last)

    def keep_turn(self, reply: Sequence[int], calls: Sequence[ToolCall]) -> None:
        """Keeps what the model wrote, up to the token that waits for the results of its calls."""
        if self.turns is None or self.tokenizer is None or not calls:
            return
        waits = self.tokenizer.get_vocab().get(WAITS)
        end = [] if waits is None else [waits]
        self.turns.keep(calls, Turn(tuple(self.rendered), tuple(self.names), (*reply, *end)))

    def is_last(self, canvas_index: int, cache: PrefixCache) -> bool:
        """Whether no canvas can follow this one, which is being denoised over that prefix."""
        has_room = cache.length + 2 * self.model.config.canvas_length <= self.model.config.max_position_embeddings
        return canvas_index + 1 == self.max_canvases or not has_room


def prepare(model: DiffusionGemma, tokenizer: Tokenizer | None, request: Request, turns: Turns | None = None) -> Run:
    """Checks a request and turns it into what a run needs; `turns` may know the end of the prompt better.

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
    check_settings(model, settings)
    form = _form(tokenizer, request)
    seen = see(model, request)
    rendered = _names(tokenizer, request, seen, seen.prompt, form)
    names = (turns and _spliced(tokenizer, request, seen, turns, form)) or rendered
    ids = seen.ids(names)
    if request.stop and tokenizer is None:
        raise DGemmaError("the checkpoint has no tokenizer files, so no text can stop it; leave stop out")
    check_ids(model, ids)
    size, plan = model.config.canvas_length, request.plan
    given, draft = given_and_draft(tokenizer, plan, settings.stops, size)
    _check_bounds(model, request, len(ids), len(given))
    steered = steerings(given, draft, plan.noise, plan.seed, size, model.config.vocab_size)
    length = settings.max_new_tokens
    if "max_new_tokens" not in request.settings.given:  # the checkpoint's 256 would cut every longer answer
        length = min(MAX_TOKENS, model.config.max_position_embeddings - len(ids))
    settings = replace(settings, max_new_tokens=max(length, len(given)))
    callable_ = _callable(tokenizer, request, size)
    return Run(
        model, tokenizer, request, ids, names, seen.pictures, settings, given, steered, callable_, rendered, turns,
        form=form,
    )  # fmt: skip


def _names(tokenizer: Tokenizer | None, request: Request, seen: Seen, prompt: Prompt, form: Format | None) -> list[int]:
    """The ids of this prompt, or of some of its messages, with images' names in them."""
    whole = prompt
    tools = () if request.tool_choice == "none" else request.tools
    if form is not None and isinstance(prompt, str) and request.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    if form is not None and isinstance(prompt, list) and not all(type(item) is int for item in prompt):
        prompt = with_form(normalised(prompt), form)
    ids = prompt_ids(tokenizer, prompt, request.chat_template, thinking=request.thinking, tools=tools)
    return seen.named(ids, whole)


def _form(tokenizer: Tokenizer | None, request: Request) -> Format | None:
    """The form of the answer, which this vocabulary can spell."""
    form = format_of(request.response_format)
    if form is None:
        return None
    if tokenizer is None:
        raise DGemmaError(
            "the checkpoint has no tokenizer files, so no answer can have a form; leave response_format out"
        )
    if request.samples > 1 or request.plan != CanvasPlan() or request.tool_choice not in ("auto", "none"):
        raise DGemmaError("response_format does not go with canvas, samples and a tool that has to be called")
    if request.chat_template:
        encode(tokenizer, form.told, "what the model is told of response_format", plain=True)
    for text in fixed_texts(form.node):
        encode(tokenizer, text, f"response_format: {text[:40]!a}", plain=True)
    return form


def _spliced(
    tokenizer: Tokenizer | None, request: Request, seen: Seen, turns: Turns, form: Format | None
) -> list[int] | None:
    """The names of a prompt whose last turn is one of our own."""
    prompt = seen.prompt
    if not isinstance(prompt, list) or not any(isinstance(m, dict) and m.get("tool_calls") for m in prompt):
        return None
    return turns.spliced(normalised(prompt), lambda messages: _names(tokenizer, request, seen, list(messages), form))


def _callable(tokenizer: Tokenizer | None, request: Request, size: int) -> list[str]:
    """The tools of which one has to be called; their openings must fit a canvas of `size` tokens."""
    names = callable_names(request)
    if names and (request.samples > 1 or request.plan != CanvasPlan()):
        raise DGemmaError(f"tool_choice {request.tool_choice!r} does not go with canvas and samples; leave them out")
    for name in names:
        length = len(opening_of(tokenizer, name))
        if length >= size:
            raise DGemmaError(f"the name of tool {name[:20]!r}… has {length} tokens, a canvas has {size}; shorten it")
    return names


def _check_bounds(model: DiffusionGemma, request: Request, prompt: int, given: int) -> None:
    """Raises DGemmaError for what positions or memory do not hold; lengths are in tokens."""
    size, most = model.config.canvas_length, model.config.max_position_embeddings
    if prompt + math.ceil(given / size) * size > most:
        raise ContextOverflow(
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
