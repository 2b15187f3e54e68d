"""Denoising steps as a stream may show them: the text so far, or every token."""

from __future__ import annotations

from typing import Any

from mlx_dgemma.server.service import Service
from mlx_dgemma.server.worker import Draft
from mlx_dgemma.text.reply import parse_reply

NOISE, ACCEPTED, CLAMPED, SETTLED = range(4)


def shown(draft: Draft, service: Service, detail: str) -> dict[str, Any]:
    """The `diffusion` object of a step's chunk; it replaces what was shown of its canvas."""
    length = len(draft.tokens)
    about: dict[str, Any] = {
        "canvas": draft.canvas,
        "step": draft.step,
        "max_steps": draft.max_steps,
        "accepted": draft.accepted_count,
        "mean_entropy": round(draft.mean_entropy, 4),
        "temperature": round(draft.temperature, 4),
    }
    if draft.computed is not None:
        about["computed"] = len(draft.computed)
    stops = service.engine.model.generation_config.stops
    end = next((i for i, token in enumerate(draft.tokens) if token in stops), length)
    reply = parse_reply(service.tokenizer, list(draft.tokens[:end]))
    about["text"] = reply.content
    if reply.thought:
        about["reasoning"] = reply.thought
    if detail == "tokens":
        about["end"] = end
        about["tokens"] = [
            [
                service.tokenizer.decode([token], skip_special_tokens=False),
                round(draft.entropy[i], 3),
                _kind(draft, i),
            ]
            for i, token in enumerate(draft.tokens)
        ]
    return about


def _kind(draft: Draft, position: int) -> int:
    """What became of a position."""
    if draft.clamped[position]:
        return CLAMPED
    if not draft.accepted[position]:
        return NOISE
    return ACCEPTED if draft.computed is None or position in draft.computed else SETTLED
