"""Re-reads what was written: relative error and bits per weight by part, then the effect on denoiser logits."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from mlx_dgemma.checkpoint.loading import load
from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.prompts import prompt_ids

from .plan import Plan
from .source import Source, SourceTensor, open_source

PROMPTS = (
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "Three facts about the sea, please.",
)
MEMORY_SHARE = 0.7  # of physical memory that two loaded models may take


def weight_errors(plan: Plan, target: Path) -> Iterator[str]:
    """A line per part: ‖written − source‖ / ‖source‖, and bits per weight."""
    written = open_source(target).tensors
    sums: dict[str, list[float]] = {}
    for job in plan.jobs:
        error, norm = squared_error(job.source, written[job.target])
        totals = sums.setdefault(job.part, [0.0, 0.0])
        totals[0] += error
        totals[1] += norm
    for part, (elements, nbytes) in plan.by_part().items():
        error, norm = sums[part]
        relative = math.sqrt(error / norm) if norm else 0.0
        yield f"{part:18} relative error {relative:.2e}   {8 * nbytes / elements:5.2f} bits per weight"


def squared_error(source: SourceTensor, written: SourceTensor) -> tuple[float, float]:
    """Σ(written − source)² and Σ source², slice by slice, in float32."""
    if written.shape != source.shape:
        raise DGemmaError(f"{written.origin} was written with shape {written.shape}, the source has {source.shape}")
    error = norm = 0.0
    for start, stop in source.runs():
        before = source.rows(start, stop).astype(mx.float32)
        after = written.rows(start, stop).astype(mx.float32)
        error += float(mx.square(after - before).sum())
        norm += float(mx.square(before).sum())
    return error, norm


def logits_divergence(source: Source, target: Path) -> str:
    """KL(source ‖ target) of the first denoising step's logits, nats per canvas position, mean over prompts."""
    if not source.denoiser_trained:
        return "KL of denoiser logits: skipped, the denoiser is untrained"
    needed = 2 * sum(f.stat().st_size for folder in (source.folder, target) for f in folder.glob("*.safetensors"))
    limit = MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > limit:
        return f"KL of denoiser logits: skipped, two models may take {needed / 1e9:.0f} GB here"
    before, tokenizer = load(source.folder)
    after, _ = load(target)
    values = []
    for index in range(len(PROMPTS)):
        p, q = (_log_probabilities(model, tokenizer, index) for model in (before, after))
        values.append(float((mx.exp(p) * (p - q)).sum(axis=-1).mean()))
    return f"KL of denoiser logits: {sum(values) / len(values):.2e} nats per position over {len(values)} prompts"


def _log_probabilities(model: DiffusionGemma, tokenizer: Tokenizer | None, index: int) -> mx.array:
    """Log-softmax of the logits (1, C, V) for a prompt and a seeded random canvas."""
    key, config = mx.random.key(index), model.config
    if tokenizer is None:
        ids = mx.random.randint(0, config.vocab_size, (16,), key=key)
    else:
        ids = mx.array(prompt_ids(tokenizer, PROMPTS[index]))
    cache = model.make_cache()
    prefill(model, ids[None], cache)
    logits = model.denoise(mx.random.randint(0, config.vocab_size, (1, config.canvas_length), key=key), cache)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
