"""A recorded run, and texts that a page must only show, for the tests of the report."""

from mlx_dgemma import GenerationConfig, load, stream_generate
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
    model, tokenizer = load()
    config = GenerationConfig(entropy_bound=0.01, max_denoising_steps=8, max_new_tokens=128, eos_token_id=[])
    recorder = Recorder(model, tokenizer, PROMPT, config, seed=1, model_id="embedded")
    for _ in record(stream_generate(model, tokenizer, PROMPT, config, seed=1), recorder):
        pass
    trace = recorder.trace()
    assert set(trace.canvas_index.tolist()) == {0, 1} and not trace.accepted.all()
    return trace
