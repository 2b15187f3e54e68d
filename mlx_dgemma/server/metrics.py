"""/metrics, in the text form that Prometheus reads; only with `--metrics`."""

from __future__ import annotations

import time

from mlx_dgemma.server.worker import Worker

TYPE = "text/plain; version=0.0.4"
COUNTERS = {
    "requests": "texts that were begun", "refused": "texts that were refused", "cancelled": "texts nobody waited for",
    "prompt_tokens": "tokens of prompts", "cached_tokens": "of these, tokens that were remembered",
    "images": "images in prompts", "image_tokens": "of the prompts' tokens, those of images",
    "tokens": "tokens of committed texts", "steps": "denoising steps", "seconds": "seconds of work",
    "full_steps": "what finished texts took, in full denoising steps of the published model",
}  # fmt: skip


def metrics(worker: Worker) -> str:
    """What was done so far, and what waits."""
    lines = list[str]()
    for name, about in COUNTERS.items():
        lines += _series(f"dgemma_{name}_total", "counter", about, vars(worker.counts)[name])
    gauges = {"waiting": ("texts that are not done", worker.waiting), "alive": ("1 while it works", worker.is_alive)}
    for name, (about, value) in gauges.items():
        lines += _series(f"dgemma_{name}", "gauge", about, value)
    lines += _series("dgemma_up_seconds", "gauge", "since it started", time.time() - worker.counts.began)
    return "\n".join(lines) + "\n"


def _series(name: str, kind: str, about: str, value: float) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value + 0:g}"]
