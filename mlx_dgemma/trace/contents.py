"""What a trace's file holds, and reading it: a file may come from anywhere, so every field and array is checked."""

import json
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.events import Stats
from mlx_dgemma.text.request import CanvasPlan

FORMAT, VERSION = "mlx-dgemma trace", 2
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
    "computed": (np.bool_, "SC"),
    "rows": (np.int64, "S"),
    "scored": (np.int64, "S"),
    "mixed": (np.int64, "S"),
}
METER = ("rows", "scored", "mixed")  # the fields of `Work`; with `computed`, what traces of version 1 have not
ABOUT = ("prompt", "settings", "seed", "model_id", "versions", "finish_reason")
# what reading a cut-off or altered archive raises, in zipfile, its decompressors, NumPy and json
DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, LookupError, TypeError, ValueError,
    RuntimeError, ArithmeticError, AttributeError, MemoryError, SyntaxError, tokenize.TokenError,
)  # fmt: skip
_LARGEST = 4 << 30  # bytes of all arrays: a hundred times the longest run there can be
_COUNTABLE = 2**62  # what counts and seconds stay below


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


def read(file: BinaryIO, path: str | Path) -> dict[str, Any]:
    """The fields of a `Trace`, by name.

    Raises:
        DGemmaError: a foreign file, or one of a newer version.
        DAMAGE: what is no trace's; the first thing that is not.
    """
    foreign = DGemmaError(f"{path} is not a trace; `dgemma-generate --trace` writes one")
    if file.read(2) != b"PK":
        raise foreign
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        _expect(sum(entry.file_size for entry in archive.infolist()) <= _LARGEST, "its arrays are too large")
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
        added = {} if about["version"] > 1 else _before_the_meter(content)
        arrays = {name: content[name] for name in ARRAYS if name not in added} | added
    _check_arrays(arrays)
    _check_about(about)
    return {
        **arrays,
        **{name: about[name] for name in ABOUT},
        "committed": tuple(_committed(canvas, arrays["draft"].shape[2]) for canvas in about["committed"]),
        "pieces": {_count(token): _text(piece) for token, piece in about["pieces"]},
        "plan": _plan(**about.get("plan", {})),
    }


def _before_the_meter(content: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What traces of version 1 did not hold: every position was computed, what that took is not known."""
    steps, _, positions = content["accepted"].shape
    nothing = {name: np.zeros(steps, np.int64) for name in METER}
    return {"computed": np.ones((steps, positions), np.bool_), **nothing}


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Arrays of the right types, whose axes agree; ValueError names the first that is not."""
    sizes: dict[str, int] = {}
    for name, (dtype, axes) in ARRAYS.items():
        array = arrays[name]
        _expect(isinstance(array, np.ndarray), f"{name} is no array")
        expected = tuple(sizes.setdefault(axis, n) for axis, n in zip(axes, array.shape, strict=False))
        if array.dtype != dtype or array.ndim != len(axes) or array.shape != expected:
            raise ValueError(f"array {name} is {array.dtype} {array.shape}")
    index = arrays["canvas_index"]
    is_run = sizes["S"] and sizes["B"] and sizes["C"] and index[0] >= 0 and (np.diff(index) >= 0).all()
    _expect(bool(is_run), "its steps are not those of a run")
    is_count = all(((arrays[name] >= 0) & (arrays[name] < _COUNTABLE)).all() for name in METER)
    _expect(is_count, "what its steps computed is no count")


def _check_about(about: dict[str, Any]) -> None:
    prompt, settings = about["prompt"], about["settings"]
    _expect(_is_prompt(prompt), "prompt is none")
    _expect(isinstance(settings, dict), "settings are no object")
    stops = settings.get("eos_token_id")
    _expect(stops is None or (isinstance(stops, list) and all(map(_is_count, stops))), "eos_token_id is no list of ids")
    _expect(_is_positive(settings.get("confidence_threshold", 1.0)), "confidence_threshold is no number")
    seed = about["seed"]
    _expect(seed is None or _is_count(seed), "seed is none")
    versions = about["versions"]
    _expect(isinstance(versions, dict), "versions are no object")
    for text in (about["model_id"], about["finish_reason"], *versions.values()):
        _text(text)


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return True
    if not isinstance(prompt, list):
        return False
    return all(map(_is_count, prompt)) or all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in prompt)


def _committed(canvas: dict[str, Any], positions: int) -> Committed:
    stats = canvas["stats"]
    if stats is not None:
        images = stats.get("image_tokens", [])
        _expect(isinstance(images, list) and all(map(_is_count, images)), "image_tokens are no counts")
        stats = Stats(**{**stats, "image_tokens": tuple(images)})
        for field in fields(Stats):
            is_figure = field.name == "image_tokens" or _is_figure(vars(stats)[field.name])
            _expect(is_figure, f"{field.name} is no figure")
    counts = {name: _count(canvas[name]) for name in ("canvas_index", "steps", "token_count")}
    _expect(counts["token_count"] <= positions, "a canvas has more tokens than positions")
    reason = canvas["finish_reason"]
    return Committed(
        **counts, text=_text(canvas["text"]), finish_reason=None if reason is None else _text(reason), stats=stats
    )


def _plan(given: Any = (), draft: Any = (), noise: float = 0.0, seed: int = 0) -> CanvasPlan:
    """A plan whose token ids JSON has made lists; ValueError or TypeError if it is none."""
    _expect(type(seed) is int and 0 <= float(noise) <= 1, "what a canvas started from is none")
    return CanvasPlan(
        given if isinstance(given, str) else tuple(None if token is None else _count(token) for token in given),
        draft if isinstance(draft, str) else tuple(map(_count, draft)),
        float(noise),
        seed,
    )


def _count(value: Any) -> int:
    if not _is_count(value):
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= 2 * _COUNTABLE


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _COUNTABLE


def _is_positive(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < math.inf)


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)
