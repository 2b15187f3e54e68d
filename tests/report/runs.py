"""A recorded run, and texts that a page must only show, for the tests of the report."""

from mlx_dgemma import Engine, GenerationConfig, Request
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
]


def recorded() -> Trace:
    """Two canvases of the embedded checkpoint: a Sudoku with several solutions, and what it says when it must go on."""
    settings = GenerationConfig(entropy_bound=0.01, max_denoising_steps=8, max_new_tokens=128, eos_token_id=[])
    engine, request = Engine.load(), Request(PROMPT, settings=settings, seed=1)
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    trace = recorder.trace()
    assert set(trace.canvas_index.tolist()) == {0, 1} and not trace.accepted.all()
    return trace
