"""The engine as plain functions of a model and a tokenizer; their arguments are the fields of `Request`."""

from collections.abc import Iterator, Sequence

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.noise import Noise
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.choose import DRAWS
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.events import GenerationResult, Sample, TextCanvas
from mlx_dgemma.text.request import CanvasPlan, Prompt, Request

Canvas = str | Sequence[int | None] | CanvasPlan
DEFAULTS = GenerationConfig()


def stream_generate(
    model: DiffusionGemma, tokenizer: Tokenizer | None, prompt: Prompt, config: GenerationConfig | None = None, *,
    seed: int = 0, noise: Noise | None = None, chat_template: bool = True, canvas: Canvas = (),
) -> Iterator[DenoisingStep | TextCanvas]:  # fmt: skip
    """See `Engine.stream`: one event per denoising step and one per committed canvas, as they happen."""
    settings = config or DEFAULTS
    request = Request(prompt, settings=settings, seed=seed, noise=noise, canvas=canvas, chat_template=chat_template)
    return Engine(model, tokenizer).stream(request)


def generate_text(
    model: DiffusionGemma, tokenizer: Tokenizer | None, prompt: Prompt, config: GenerationConfig | None = None, *,
    seed: int = 0, noise: Noise | None = None, chat_template: bool = True, canvas: Canvas = (),
) -> GenerationResult:  # fmt: skip
    """See `Engine.generate`."""
    settings = config or DEFAULTS
    request = Request(prompt, settings=settings, seed=seed, noise=noise, canvas=canvas, chat_template=chat_template)
    return Engine(model, tokenizer).generate(request)


def stream_samples(
    model: DiffusionGemma, tokenizer: Tokenizer | None, prompt: Prompt, config: GenerationConfig | None = None, *,
    n: int, seed: int = 0, chat_template: bool = True, canvas: Canvas = (),
) -> Iterator[DenoisingStep | Sample]:  # fmt: skip
    """See `Engine.stream_samples`."""
    settings = config or DEFAULTS
    request = Request(prompt, settings=settings, seed=seed, canvas=canvas, samples=n, chat_template=chat_template)
    return Engine(model, tokenizer).stream_samples(request)


def generate_samples(
    model: DiffusionGemma, tokenizer: Tokenizer | None, prompt: Prompt, config: GenerationConfig | None = None, *,
    n: int, seed: int = 0, chat_template: bool = True, canvas: Canvas = (),
) -> list[Sample]:  # fmt: skip
    """See `Engine.samples`."""
    settings = config or DEFAULTS
    request = Request(prompt, settings=settings, seed=seed, canvas=canvas, samples=n, chat_template=chat_template)
    return Engine(model, tokenizer).samples(request)


def choose(
    model: DiffusionGemma, tokenizer: Tokenizer | None, prompt: Prompt, template: str, labels: Sequence[str], *,
    seed: int = 0, draws: int = DRAWS, chat_template: bool = True,
) -> dict[str, float]:  # fmt: skip
    """See `Engine.choose`."""
    request = Request(prompt, seed=seed, chat_template=chat_template)
    return Engine(model, tokenizer).choose(request, template, labels, draws=draws)


def choose_each(
    model: DiffusionGemma, tokenizer: Tokenizer | None, prompt: Prompt, template: str,
    labels: Sequence[Sequence[str]], *, seed: int = 0, draws: int = DRAWS, chat_template: bool = True,
) -> list[dict[str, float]]:  # fmt: skip
    """See `Engine.choose_each`."""
    request = Request(prompt, seed=seed, chat_template=chat_template)
    return Engine(model, tokenizer).choose_each(request, template, labels, draws=draws)
