"""A recorded run, and texts that a page must only show, for the tests of the report."""

import dataclasses

import numpy as np

from mlx_dgemma import CanvasPlan, Engine, GenerationConfig, Request
from mlx_dgemma.diffusion.settling import Settling
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import Trace

PROMPT = "sudoku 1..4..1.2....3.1"
HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "</script ",
    "<!-- <script ",
    "<img src=x onerror=alert(2)>",
    "{{script}}",
    "\u2028&amp;",
    "]]>",
    "\x1b[2J\x1b]0;x\x07\x00\x7f\x9b",
    "\u202eevil\u2066\u200f\u200d\ufeff\ue000",
]
WORLD = ["日本語", "שלום", "العربية", "🙂", "e\u0301", "हिन्दी", "ไทย", "🇩🇪", "☀\ufe0f", "  two", "\n\n", "fi", "ö"]


def recorded(eos: bool = False, **request) -> Trace:
    """Two canvases of the embedded checkpoint: a Sudoku with several solutions, and what it says when it must go on.

    With `eos` it may stop, and has one canvas.
    """
    settings = GenerationConfig(entropy_bound=0.01, max_denoising_steps=8, max_new_tokens=128)
    if not eos:
        settings = dataclasses.replace(settings, eos_token_id=[])
    engine, request = Engine.load(), Request(PROMPT, settings=settings, seed=1, **request)
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    trace = recorder.trace()
    assert trace.canvas_index[-1] == 1 - eos and not trace.accepted.all()
    return trace


def settling() -> Trace:
    """A Sudoku of which positions settle; one canvas."""
    settings = GenerationConfig(settling=Settling())
    engine, request = Engine.load(), Request("sudoku 1...............", settings=settings, seed=3)
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    trace = recorder.trace()
    assert trace.rows.min() < trace.rows.max() == 64
    return trace


def hostile(trace: Trace) -> Trace:
    """The same run with texts that must only be shown: of the first tokens, and everywhere else."""
    draft, new = trace.draft.copy(), range(900, 900 + len(HOSTILE))
    draft[:, :, : len(HOSTILE)] = list(new)
    committed = tuple(dataclasses.replace(c, text="".join(HOSTILE)) for c in trace.committed)
    pieces, text = trace.pieces | dict(zip(new, HOSTILE, strict=True)), "".join(HOSTILE)
    plan = CanvasPlan(text, text, 0.5)
    return dataclasses.replace(
        trace, draft=draft, pieces=pieces, prompt=text, model_id=HOSTILE[-1], committed=committed, plan=plan
    )


def with_texts(trace: Trace, words: list[str]) -> Trace:
    """The run with these texts in the first positions, all accepted."""
    draft, ids = trace.draft.copy(), range(800, 800 + len(words))
    draft[:, :, : len(words)] = list(ids)
    pieces = trace.pieces | dict(zip(ids, words, strict=True))
    return dataclasses.replace(trace, draft=draft, pieces=pieces, accepted=np.ones_like(trace.accepted))
