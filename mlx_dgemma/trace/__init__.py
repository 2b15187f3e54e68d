"""Runs that are kept: `recorder` records the events of one, `trace` saves, loads and replays them.

recorder = Recorder(engine, request)
for event in record(engine.stream(request), recorder):
    …
recorder.trace().save("run.npz")

for event in replay(load_trace("run.npz")):
    …
"""

from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import Trace, load_trace, replay

__all__ = ["Recorder", "Trace", "load_trace", "record", "replay"]
