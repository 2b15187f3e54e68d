"""Traces: every denoising step of a run, recorded, kept in one .npz, loaded as typed arrays and replayed.

A trace holds S steps of B rows (samples; 1 from `Engine.stream`) of C positions. Canvases may take different numbers
of steps, so steps are stored flat, one after another, and `canvas_index` says which canvas each belongs to.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.diffusion.work import Work
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import open_file, write_whole
from mlx_dgemma.model import host
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.request import CanvasPlan, Prompt
from mlx_dgemma.trace.contents import ABOUT, ARRAYS, DAMAGE, FORMAT, METER, VERSION, Committed, read


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded run: NumPy arrays over S steps, B rows (samples) and C positions, and what the run was.

    Attributes:
        canvas: ids each step started from, (S, B, C) int32.
        draft: argmax ids after it, what would be committed then, (S, B, C) int32.
        entropy: of the tempered distribution, nats, (S, B, C) float32.
        log_p: log-probability of the draft's tokens in it, nats, (S, B, C) float32.
        accepted: positions accepted, (S, B, C) bool.
        clamped: positions that a steered canvas kept fixed, (S, B, C) bool; all False where nothing was steered.
        canvas_index: which canvas, from 0, never decreasing, (S,) int32.
        step: which step of its canvas, from 1, (S,) int32.
        remaining: steps left including this one, N … 1, (S,) int32.
        temperature: what the logits were divided by, (S,) float64.
        accepted_count: positions accepted, over all rows, (S,) int32.
        mean_entropy: nats, over all positions and rows, (S,) float64.
        finished: whether the canvas was done, (S,) bool.
        seconds: that the step took, (S,) float64; a canvas's first step includes encoding what comes before it (the
            prompt, or the canvas before).
        elapsed: seconds from the start of the recording to the end of the step, (S,) float64.
        computed: positions that the step computed, the others had settled or were not there yet, (S, C) bool.
        rows, scored, mixed: what it computed, see `diffusion.work.Work`, (S,) int64; 0 in traces older than the meter.
        prompt: as it was given: a text, chat messages, or token ids.
        prompt_ids: the prompt's token ids, (P,) int32.
        settings: every field of the GenerationConfig that was in force; `GenerationConfig(**settings)` is it, unless
            strategies of one's own, or settling, stand there as texts, without the numbers that they replace.
        seed: of the noise; None for a noise source of the caller's.
        model_id: the checkpoint's folder or hub repository, or "embedded".
        versions: of mlx-dgemma and mlx, by name.
        finish_reason: "stop", "length", or "interrupted".
        committed: the canvases that were committed, in order.
        pieces: text of every token id that occurs; empty for a checkpoint without a tokenizer.
        plan: what the canvases started from; of an empty one, and in traces older than it, nothing was given.
    """

    canvas: np.ndarray
    draft: np.ndarray
    entropy: np.ndarray
    log_p: np.ndarray
    accepted: np.ndarray
    clamped: np.ndarray
    canvas_index: np.ndarray
    step: np.ndarray
    remaining: np.ndarray
    temperature: np.ndarray
    accepted_count: np.ndarray
    mean_entropy: np.ndarray
    finished: np.ndarray
    seconds: np.ndarray
    elapsed: np.ndarray
    computed: np.ndarray
    rows: np.ndarray
    scored: np.ndarray
    mixed: np.ndarray
    prompt: Prompt
    prompt_ids: np.ndarray
    settings: dict[str, Any]
    seed: int | None
    model_id: str
    versions: dict[str, str]
    finish_reason: str
    committed: tuple[Committed, ...]
    pieces: dict[int, str]
    plan: CanvasPlan = field(default_factory=CanvasPlan)

    @property
    def text(self) -> str:
        """The text of all committed canvases."""
        return "".join(canvas.text for canvas in self.committed)

    def save(self, path: str | Path) -> None:
        """Writes the trace as a compressed .npz; a file of that name is replaced when the new one is complete.

        Raises:
            DGemmaError: the file cannot be written there.
        """
        about = {"format": FORMAT, "version": VERSION, **{name: getattr(self, name) for name in ABOUT}}
        about["committed"] = [asdict(canvas) for canvas in self.committed]
        about["pieces"] = list(self.pieces.items())  # JSON objects have no integer keys
        about["plan"] = asdict(self.plan)
        encoded = np.frombuffer(json.dumps(about).encode(), np.uint8)
        arrays = {name: getattr(self, name) for name in ARRAYS}
        write_whole(path, lambda file: np.savez_compressed(file, about=encoded, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Reads a trace.

        Raises:
            DGemmaError: no such file, a damaged or foreign one, or one of a newer version.
        """
        try:
            with open_file(Path(os.path.expanduser(path))) as file:
                return cls(**read(file, path))
        except OSError as error:
            raise DGemmaError(f"{path} cannot be read: {error.strerror or first_line(error)}") from None
        except DGemmaError:
            raise
        except DAMAGE as error:
            raise DGemmaError(f"{path} is damaged ({first_line(error)}); record the run again") from None


load_trace = Trace.load


def replay(trace: Trace, speed: float | None = None) -> Iterator[DenoisingStep | TextCanvas | CommittedCanvas]:
    """The events of the run, as `Engine.stream` yielded them (or `generate_canvases`, if that was recorded).

    Args:
        trace: from `load_trace`.
        speed: how many times faster than recorded; None does not wait at all.

    Raises:
        DGemmaError: a speed that is not positive.
    """
    if speed is not None and not speed > 0:
        raise DGemmaError(f"speed must be a number > 0 or None, got {speed!r}")
    return _replay(trace, speed)


def _replay(trace: Trace, speed: float | None) -> Iterator[DenoisingStep | TextCanvas | CommittedCanvas]:
    committed, work = {canvas.canvas_index: canvas for canvas in trace.committed}, Work()
    for index in range(len(trace.step)):
        if speed is not None:
            time.sleep(trace.seconds[index] / speed)
        event = _step(trace, index)
        work = event.work if event.step == 1 else work + event.work
        yield event
        if event.finished and event.canvas_index in committed:
            yield _canvas(committed[event.canvas_index], event, work)


def _step(trace: Trace, index: int) -> DenoisingStep:
    clamped, computed = trace.clamped[index], trace.computed[index]
    return DenoisingStep(
        canvas_index=int(trace.canvas_index[index]),
        step=int(trace.step[index]),
        remaining=int(trace.remaining[index]),
        temperature=float(trace.temperature[index]),
        canvas=mx.array(trace.canvas[index]),
        draft=mx.array(trace.draft[index]),
        entropy=mx.array(trace.entropy[index]),
        log_p=mx.array(trace.log_p[index]),
        accepted=mx.array(trace.accepted[index]),
        accepted_count=int(trace.accepted_count[index]),
        mean_entropy=float(trace.mean_entropy[index]),
        finished=bool(trace.finished[index]),
        clamped=mx.array(clamped) if clamped.any() else None,
        computed=None if computed.all() else tuple(np.flatnonzero(computed).tolist()),
        work=Work(*(int(vars(trace)[name][index]) for name in METER)),
    )


def _canvas(canvas: Committed, last: DenoisingStep, work: Work) -> TextCanvas | CommittedCanvas:
    if canvas.stats is None:
        return CommittedCanvas(canvas.canvas_index, last.draft, canvas.steps, work)
    ids, count = host.ints(last.draft[0]), canvas.token_count
    return TextCanvas(
        canvas.canvas_index, ids, ids[:count], canvas.text, canvas.steps, canvas.finish_reason, canvas.stats,
        host.floats(last.log_p[0])[:count], host.floats(last.entropy[0])[:count],
    )  # fmt: skip
