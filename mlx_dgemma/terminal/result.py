"""A finished generation, as a command line tells it: a summary in words, or JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_dgemma.text.events import GenerationResult, Stats


def as_json(result: GenerationResult) -> dict[str, object]:
    """What a result holds, as JSON types."""
    stats = result.stats
    causal = {"causal_log_p": list(result.causal_log_p), "mean_causal_log_p": result.mean_causal_log_p}
    return {
        "text": result.text,
        "thought": result.thought,
        "tool_calls": [asdict(call) for call in result.tool_calls],
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "stop_text": result.stop_text,
        "fault": result.fault,
        "steps_per_canvas": result.steps_per_canvas,
        "log_p": list(result.log_p),
        "entropy": list(result.entropy),
        **(causal if result.causal_log_p else {}),
        "stats": {
            **asdict(stats),
            "prompt_tokens_per_second": stats.prompt_tokens_per_second,
            "tokens_per_second": stats.tokens_per_second,
            "tokens_per_forward": stats.tokens_per_forward,
            "work": stats.work,
        },
    }


def empty(result: GenerationResult) -> str | None:
    """What to say of a text that holds nothing; None for one that does, or that was not finished."""
    if result.text.strip() or result.tool_calls or result.finish_reason == "interrupted":
        return None
    if result.stats.thought_tokens:
        return (
            f"the model wrote a thought of {result.stats.thought_tokens} tokens and no answer; raise --max-tokens if "
            "it was cut"
        )
    return "the model wrote nothing"


def ended(result: GenerationResult) -> str | None:
    """What to say of a text that did not come to its own end."""
    if result.finish_reason == "length" and result.text.strip():
        return f"the text was cut at {result.stats.tokens} tokens; --max-tokens raises that, as far as the context goes"
    if result.finish_reason == "repetition":
        return "the model began to repeat itself, so the text was ended"
    return f"the answer has not the form that was asked for: {result.fault}" if result.fault else None


def images(stats: Stats) -> str:
    """The images of a prompt: ", 2 images of 64 + 54 tokens seen in 0.31 s"; nothing where there is none."""
    if not stats.image_tokens:
        return ""
    many = "s" * (len(stats.image_tokens) != 1)
    told = f", {len(stats.image_tokens)} image{many} of {' + '.join(map(str, stats.image_tokens))} tokens"
    return told + (f" seen in {stats.image_seconds:.2f} s" if stats.image_seconds else "")


def summary(result: GenerationResult) -> str:
    """Four lines: prompt, text, steps, memory."""
    cached = f" ({result.stats.cached_tokens} remembered)" if result.stats.cached_tokens else ""
    stats, steps = result.stats, " + ".join(map(str, result.steps_per_canvas)) or "0"
    steps += f" and {stats.causal_tokens} tokens causally" if stats.causal_tokens else ""
    return "\n".join((
        f"prompt:  {stats.prompt_tokens} tokens{cached}, {stats.prompt_tokens_per_second:.1f} tokens/s{images(stats)}",
        f"text:    {stats.tokens} tokens in {stats.canvases} canvas{'es' * (stats.canvases != 1)} and "
        f"{stats.seconds:.2f} s, {stats.tokens_per_second:.1f} tokens/s ({result.finish_reason})",
        f"steps:   {steps}, {stats.tokens_per_forward:.1f} tokens per forward, {stats.work:.3f} full steps per token",
        f"memory:  {stats.peak_memory / 1e9:.3f} GB at most",
    ))  # fmt: skip
