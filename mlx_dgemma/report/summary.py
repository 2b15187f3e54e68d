"""A trace in words: the table of a report."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from mlx_dgemma.report.texts import ends, has_settled
from mlx_dgemma.text.events import Stats
from mlx_dgemma.text.messages import text_of
from mlx_dgemma.trace.trace import Trace


def prompt_text(trace: Trace) -> str:
    """The prompt as a reader would write it: the text, one line a chat message, or the token ids."""
    if isinstance(trace.prompt, str):
        return trace.prompt
    return "\n".join(
        f"{m['role']}: {text_of(m['content'])}" for m in trace.prompt if isinstance(m, dict)
    ) or "token ids " + (" ".join(map(str, trace.prompt)))


def about(trace: Trace) -> str:
    """One line: model, seed, canvases, steps, how it ended."""
    seed = "own noise" if trace.seed is None else f"seed {trace.seed}"
    return f"{trace.model_id} · {seed} · {_canvases(trace)} · {_count(len(trace.step), 'step')} · {trace.finish_reason}"


def summary(trace: Trace) -> list[tuple[str, str]]:
    """Name and value, row by row."""
    last = trace.committed[-1].stats if trace.committed else None
    seconds = last.seconds if last else float(trace.seconds.sum())
    tokens = sum(canvas.token_count for canvas in trace.committed) * trace.canvas.shape[1]
    per_canvas = [int((trace.canvas_index == index).sum()) for index in dict.fromkeys(trace.canvas_index.tolist())]
    rows = [
        ("prompt", prompt_text(trace)),
        ("prompt tokens", _prompt_tokens(trace)),
        ("model", trace.model_id),
        ("seed", "none (noise of the caller's)" if trace.seed is None else str(trace.seed)),
        ("finish reason", trace.finish_reason),
        ("canvases", f"{_canvases(trace)}, {trace.canvas.shape[2]} positions each"),
        ("denoising steps", f"{len(trace.step)}" + (f" ({' + '.join(map(str, per_canvas))})" * (len(per_canvas) > 1))),
        ("tokens", f"{tokens}"),
        ("seconds", f"{seconds:.3f}"),
        ("tokens per second", f"{tokens / seconds:.1f}" if seconds else "none"),
        ("tokens per step", f"{tokens / len(trace.step):.1f}"),
        ("median step", f"{1e3 * sorted(trace.seconds)[len(trace.step) // 2]:.1f} ms"),
    ]
    rows += _work(trace, last)
    if trace.canvas.shape[1] > 1:
        rows.insert(5, ("samples", str(trace.canvas.shape[1])))
    rows += _steering(trace)
    units = {"entropy_bound": " nats", "confidence_threshold": " nats"}
    rows += [(name, f"{value}{units.get(name, '')}") for name, value in trace.settings.items()]
    return rows + [(f"{name} version", version) for name, version in trace.versions.items()]


def _work(trace: Trace, last: Stats | None) -> list[tuple[str, str]]:
    """What was computed; nothing of traces that are older than the meter."""
    if not trace.rows.any():
        return []
    computed, whole = int(trace.rows.sum()), trace.accepted.size
    told = [("positions computed", f"{computed} of {whole} ({100 * computed / whole:.0f} %)")] * has_settled(trace)
    if last is not None:
        told.append(("work", f"{last.work:.3f} full steps per token"))
    return told


def _steering(trace: Trace) -> list[tuple[str, str]]:
    """What the canvases started from."""
    plan, rows = trace.plan, []
    if plan.given:
        rows.append(("template", plan.given if isinstance(plan.given, str) else _ids(plan.given)))
    if plan.draft:
        rows.append(("draft", plan.draft if isinstance(plan.draft, str) else _ids(plan.draft)))
        rows.append(("noise share of the draft", f"{plan.noise:g}" + f", seed {plan.seed}" * (plan.noise > 0)))
    if trace.clamped.any():
        last = [*np.flatnonzero(np.diff(trace.canvas_index)), len(trace.step) - 1]  # step of every canvas
        clamped = trace.clamped[last]  # (canvases, B, C)
        behind = clamped & (np.arange(clamped.shape[2]) >= ends(trace)[last][..., None])
        end = f", {behind.sum()} of them the end and what is behind it" if behind.any() else ""
        rows.append(("clamped positions", f"{clamped.sum()}{end}"))
    return rows


def _ids(tokens: Sequence[int | None]) -> str:
    """Token ids, gaps as in templates: token ids 5 {2} 7."""
    runs = ((is_gap, list(run)) for is_gap, run in groupby(tokens, key=lambda token: token is None))
    return "token ids " + " ".join(f"{{{len(run)}}}" if is_gap else " ".join(map(str, run)) for is_gap, run in runs)


def _prompt_tokens(trace: Trace) -> str:
    last = trace.committed[-1].stats if trace.committed else None
    rate = f", {last.prompt_tokens_per_second:.1f} per second" if last else ""
    return f"{len(trace.prompt_ids)}{rate}"


def _canvases(trace: Trace) -> str:
    begun, whole = int(trace.canvas_index[-1]) + 1, len(trace.committed)
    return _count(begun, "canvas", "canvases") + (f", {whole} committed" if whole < begun else "")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
