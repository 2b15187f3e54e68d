"""Recording a run while it happens: every event is copied to small host arrays, of which a `Trace` is made.

recorder = Recorder(engine, request)
for event in record(engine.stream(request), recorder):
    …
recorder.trace().save("run.npz")
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from mlx_dgemma import __version__
from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import host
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.pictures import described
from mlx_dgemma.text.request import Request
from mlx_dgemma.trace.contents import ARRAYS, Committed
from mlx_dgemma.trace.trace import Trace

Event = DenoisingStep | TextCanvas | CommittedCanvas
Some = TypeVar("Some", bound=Event)


class Recorder:
    """Collects the events of one run; `trace` gives what was recorded so far, at any time.

    Args:
        engine, request: what the run is of; a request with a noise source of its own is recorded without a seed.

    Raises:
        DGemmaError: as `engine.prepare`, for a request that cannot be carried out; one with a `response_format`,
            another mode than diffusion, or one that is repaired.
    """

    def __init__(self, engine: Engine, request: Request):
        if request.response_format is not None:
            raise DGemmaError("an answer of a given form takes attempts that no trace can hold; leave one of them out")
        if request.mode != "diffusion" or request.repair:
            raise DGemmaError("a trace holds canvases as they were denoised; leave mode and repair out, or the trace")
        run = engine.prepare(request)
        self._about: dict[str, Any] = {
            "prompt": described(request, run.pictures),
            "prompt_ids": np.array(run.ids, np.int32),
            "settings": request.settings.over(engine.model.generation_config).to_dict(),
            "plan": request.plan,
            "seed": request.seed if request.noise is None else None,
            "model_id": engine.checkpoint,
            "versions": {"mlx-dgemma": __version__, "mlx": host.MLX_VERSION},
        }
        self._tokenizer = engine.tokenizer
        self._steps: list[dict[str, Any]] = []
        self._committed: list[Committed] = []
        self._ended = False
        self._began = self._resumed = time.perf_counter()

    def resume(self) -> None:
        """Starts the clock of the next step: what the caller did since the last event is not that step's time."""
        self._resumed = time.perf_counter()

    def add(self, event: Event) -> None:
        """Records an event of `Engine.stream` or `generate_canvases`; its arrays are copied."""
        now = time.perf_counter()
        if isinstance(event, DenoisingStep):
            self._steps.append(_host(event, now - self._resumed, now - self._began))
        elif isinstance(event, TextCanvas):
            self._committed.append(
                Committed(
                    event.canvas_index, event.steps, len(event.tokens), event.text, event.finish_reason, event.stats
                )
            )
        else:
            self._committed.append(Committed(event.canvas_index, event.steps, event.tokens.shape[1], "", None, None))
        self.resume()

    def end(self) -> None:
        """Notes that the run came to its own end; `record` does it."""
        self._ended = True

    def trace(self) -> Trace:
        """What was recorded so far.

        Raises:
            DGemmaError: not a single step was.
        """
        if not self._steps:
            raise DGemmaError("there is no trace: the run ended before its first denoising step was done")
        names = self._steps[0].keys()
        arrays: dict[str, Any] = {
            name: np.array([step[name] for step in self._steps], ARRAYS[name][0]) for name in names
        }
        ids = np.unique(np.concatenate([arrays["canvas"].ravel(), arrays["draft"].ravel(), self._about["prompt_ids"]]))
        return Trace(
            **arrays,
            **self._about,
            finish_reason=self._finish_reason(),
            committed=tuple(self._committed),
            pieces=pieces(self._tokenizer, ids.tolist()),
        )

    def _finish_reason(self) -> str:
        reason = self._committed[-1].finish_reason if self._committed else None
        return reason or ("length" if self._ended else "interrupted")


def _host(event: DenoisingStep, seconds: float, elapsed: float) -> dict[str, Any]:
    """A step's part of every array of a trace, copied off the device."""
    accepted = np.array(event.accepted)
    computed = np.full(accepted.shape[1], event.computed is None)
    computed[list(event.computed or ())] = True
    return {
        "canvas": np.array(event.canvas),
        "draft": np.array(event.draft),
        "entropy": np.array(event.entropy),
        "log_p": np.array(event.log_p),
        "accepted": accepted,
        "clamped": np.zeros_like(accepted) if event.clamped is None else np.array(event.clamped),
        "canvas_index": event.canvas_index,
        "step": event.step,
        "remaining": event.remaining,
        "temperature": event.temperature,
        "accepted_count": event.accepted_count,
        "mean_entropy": event.mean_entropy,
        "finished": event.finished,
        "seconds": seconds,
        "elapsed": elapsed,
        "computed": computed,
        **asdict(event.work),
    }


def record(stream: Iterable[Some], recorder: Recorder) -> Iterator[Some]:
    """Passes a stream on, event by event, each recorded first; only the stream's own time counts as a step's."""
    recorder.resume()
    for event in stream:
        recorder.add(event)
        yield event
        recorder.resume()
    recorder.end()


def pieces(tokenizer: Tokenizer | None, ids: list[int]) -> dict[int, str]:
    """The text of each token by itself; the token's name where that is no text (half a character, a special token)."""
    if tokenizer is None:
        return {}
    texts = (tokenizer.decode([token], skip_special_tokens=False) for token in ids)
    names = zip(ids, texts, tokenizer.convert_ids_to_tokens(ids), strict=True)
    return {token: text if text and "\ufffd" not in text else name for token, text, name in names}
