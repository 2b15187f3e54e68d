"""Traces: every denoising step of a run, recorded, kept in one .npz, loaded as typed arrays and replayed.

A trace holds S steps of B rows (samples; 1 from `Engine.stream`) of C positions. Canvases may take different numbers
of steps, so steps are stored flat, one after another, and `canvas_index` says which canvas each belongs to.
"""

import json
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from mlx_dgemma.diffusion.canvas import CommittedCanvas, DenoisingStep
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import write_whole
from mlx_dgemma.text.events import Stats, TextCanvas
from mlx_dgemma.text.request import CanvasPlan, Prompt

FORMAT, VERSION = "mlx-dgemma trace", 1
ARRAYS = {  # what the file holds: the dtype, and the axes: S steps, B rows, C positions, P prompt tokens
    "canvas": (np.int32, "SBC"),
    "draft": (np.int32, "SBC"),
    "entropy": (np.float32, "SBC"),
    "log_p": (np.float32, "SBC"),
    "accepted": (np.bool_, "SBC"),
    "clamped": (np.bool_, "SBC"),
    "canvas_index": (np.int32, "S"),
    "step": (np.int32, "S"),
    "remaining": (np.int32, "S"),
    "temperature": (np.float64, "S"),
    "accepted_count": (np.int32, "S"),
    "mean_entropy": (np.float64, "S"),
    "finished": (np.bool_, "S"),
    "seconds": (np.float64, "S"),
    "elapsed": (np.float64, "S"),
    "prompt_ids": (np.int32, "P"),
}


@dataclass(frozen=True)
class Committed:
    """A canvas that was committed.

    Attributes:
        canvas_index: which canvas, from 0; its ids are the draft of its last step.
        steps: denoising steps it took.
        token_count: how many of its ids, from the left, belong to the text.
        text: what it adds to the text.
        finish_reason: None while more was to come, else "stop" or "length".
        stats: of the generation up to here; None if the run was recorded as token ids, without text.
    """

    canvas_index: int
    steps: int
    token_count: int
    text: str
    finish_reason: str | None
    stats: Stats | None


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
        prompt: as it was given: a text, chat messages, or token ids.
        prompt_ids: the prompt's token ids, (P,) int32.
        settings: every field of the GenerationConfig that was in force; `GenerationConfig(**settings)` is it, unless
            strategies of one's own stand there as texts, which no longer have the numbers they replace.
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
        about = {"format": FORMAT, "version": VERSION, **{name: getattr(self, name) for name in _ABOUT}}
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
            with Path(path).expanduser().open("rb") as file:
                return _read(cls, file, path)
        except OSError as error:
            raise DGemmaError(f"{path} cannot be read: {error.strerror or first_line(error)}") from None
        except DGemmaError:
            raise
        except _DAMAGE as error:
            raise DGemmaError(f"{path} is damaged ({first_line(error)}); record the run again") from None


# what reading a cut-off or altered archive raises, in zipfile, zlib, NumPy and json
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, TypeError, ValueError, RuntimeError)
_ABOUT = ("prompt", "settings", "seed", "model_id", "versions", "finish_reason")
load_trace = Trace.load


def _read(kind: type[Trace], file: BinaryIO, path: str | Path) -> Trace:
    foreign = DGemmaError(f"{path} is not a trace; `dgemma-generate --trace` writes one")
    if file.read(2) != b"PK":
        raise foreign
    file.seek(0)
    with np.load(file, allow_pickle=False) as content:
        if "about" not in content:
            raise foreign
        about = json.loads(content["about"].tobytes())
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise foreign
        if about["version"] > VERSION:
            raise DGemmaError(
                f"{path} is a trace of version {about['version']}, this package reads {VERSION}; upgrade mlx-dgemma"
            )
        arrays = {name: content[name] for name in ARRAYS}
    _check(arrays)
    return kind(
        **arrays,
        **{name: about[name] for name in _ABOUT},
        committed=tuple(_committed(**canvas) for canvas in about["committed"]),
        pieces={int(token): piece for token, piece in about["pieces"]},
        plan=_plan(**about.get("plan", {})),
    )


def _committed(stats: dict[str, Any] | None, **canvas: Any) -> Committed:
    return Committed(**canvas, stats=None if stats is None else Stats(**stats))


def _plan(given: Any = (), draft: Any = (), noise: float = 0.0, seed: int = 0) -> CanvasPlan:
    """A plan whose token ids JSON has made lists; ValueError or TypeError if it is none."""
    texts_or_ids = (value if isinstance(value, str) else _ids(value) for value in (given, draft))
    return CanvasPlan(*texts_or_ids, float(noise), int(seed))


def _ids(tokens: Iterable[Any]) -> tuple[int | None, ...]:
    return tuple(None if token is None else int(token) for token in tokens)


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Arrays of the right types, whose axes agree; ValueError names the first that is not."""
    sizes: dict[str, int] = {}
    for name, (dtype, axes) in ARRAYS.items():
        array = arrays[name]
        expected = tuple(sizes.setdefault(axis, n) for axis, n in zip(axes, array.shape, strict=False))
        if array.dtype != dtype or array.ndim != len(axes) or array.shape != expected:
            raise ValueError(f"array {name} is {array.dtype} {array.shape}")
    if not sizes["S"] or (np.diff(arrays["canvas_index"]) < 0).any():
        raise ValueError("its steps are not those of a run")


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
    committed = {canvas.canvas_index: canvas for canvas in trace.committed}
    for index in range(len(trace.step)):
        if speed is not None:
            time.sleep(trace.seconds[index] / speed)
        event = _step(trace, index)
        yield event
        if event.finished and event.canvas_index in committed:
            yield _canvas(committed[event.canvas_index], event)


def _step(trace: Trace, index: int) -> DenoisingStep:
    clamped = trace.clamped[index]
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
    )


def _canvas(canvas: Committed, last: DenoisingStep) -> TextCanvas | CommittedCanvas:
    if canvas.stats is None:
        return CommittedCanvas(canvas.canvas_index, last.draft, canvas.steps)
    ids, count = last.draft[0].tolist(), canvas.token_count
    return TextCanvas(
        canvas.canvas_index, ids, ids[:count], canvas.text, canvas.steps, canvas.finish_reason, canvas.stats,
        last.log_p[0].tolist()[:count], last.entropy[0].tolist()[:count],
    )  # fmt: skip
