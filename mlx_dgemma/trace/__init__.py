"""Runs that are kept: `recorder` records the events of one, `trace` saves, loads and replays them.

recorder = Recorder(model, tokenizer, prompt, seed=3, model_id="embedded")
for event in record(stream_generate(model, tokenizer, prompt, seed=3), recorder):
    …
recorder.trace().save("run.npz")

for event in replay(load_trace("run.npz")):
    …
"""

from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import Trace, load_trace, replay

__all__ = ["Recorder", "Trace", "load_trace", "record", "replay"]
