"""Reading checkpoint folders: safetensors headers, and a table that says what becomes of every tensor name.

Headers are read first, so that a missing, misshapen or cut-off tensor is found before any weight is.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import read_file

# Bytes per element by safetensors' type names.
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header; its bytes are `file[offset : offset + nbytes]`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Rule:
    """Names that match `pattern` become `target` (a regex replacement), or are dropped for `reason`."""

    pattern: re.Pattern[str]
    target: str | None = None
    reason: str = ""


VISION = re.compile(r"model\.encoder\.(vision_tower|embed_vision)\..*")
TEXT_RULES = (
    Rule(re.compile(r"lm_head\.weight"), reason="tied to the embedding"),
    Rule(re.compile(r"(model\.encoder\.language_model\.layers\.\d+\.layer_scalar)"), r"\1"),
    Rule(re.compile(r"model\.encoder\.language_model\..*"), reason="tied to the decoder"),
    Rule(re.compile(r"(model\.decoder\.layers\.\d+\.experts\.(gate_up|down)_proj)"), r"\1.weight"),
    Rule(re.compile(r"(model\.decoder\..*)"), r"\1"),
)
VESTIGIAL = Rule(re.compile(r"model\.encoder\.embed_vision\.embedding\..*"), reason="vestigial, nothing reads it")
VISION_RULES = (
    VESTIGIAL,
    Rule(re.compile(r"(model\.encoder\.vision_tower\..*_proj)\.linear(\..*)"), r"\1\2"),  # a wrapper that clips nothing
    Rule(VISION, r"\g<0>"),
)
# First match wins. Names that match nothing are errors.
RULES = (*VISION_RULES, *TEXT_RULES)


def target_name(name: str, rules: tuple[Rule, ...] = RULES) -> str | None:
    """The module path of a checkpoint's tensor; None if it is dropped on purpose."""
    rule = rule_for(name, rules)
    match = rule.pattern.fullmatch(name)
    return None if match is None or rule.target is None else match.expand(rule.target)


def rule_for(name: str, rules: tuple[Rule, ...] = RULES) -> Rule:
    """The first rule that matches a checkpoint's tensor name."""
    rule = next((rule for rule in rules if rule.pattern.fullmatch(name)), None)
    if rule is None:
        raise DGemmaError(f"unknown tensor {name}; is this a DiffusionGemma checkpoint?")
    return rule


def by_target(headers: dict[str, TensorInfo], rules: tuple[Rule, ...] = RULES) -> dict[str, TensorInfo]:
    """The tensors that are not dropped, by module path; a complaint names the file."""
    targets: dict[str, TensorInfo] = {}
    for name, info in headers.items():
        try:
            target = target_name(name, rules)
        except DGemmaError as error:
            raise DGemmaError(f"{info.file}: {error}") from None
        if target in targets:
            other = targets[target]
            raise DGemmaError(f"{info.file}: {name} and {other.name} of {other.file.name} are one weight; drop one")
        if target is not None:
            targets[target] = info
    return targets


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint folder by name, from the headers of its safetensors files alone."""
    infos: dict[str, TensorInfo] = {}
    for file in shard_files(folder):
        for name, info in read_header(file).items():
            if name in infos:
                raise DGemmaError(f"{file}: tensor {name} is in {infos[name].file.name} too; remove one of the files")
            infos[name] = info
    return infos


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files that the index names, or all there are if there is no index.

    All lie in the folder itself; what is a link there is followed, as the hub's cache is made of links.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(read_file(index).decode("utf-8"))["weight_map"].values()), key=str)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DGemmaError(f"{index} is not a safetensors index; download it again") from None
        for name in names:
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise DGemmaError(f"{index} names {name!r}, which is no .safetensors file beside it; download it again")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DGemmaError(f"{folder / missing[0]} is missing, but the index names it; finish the download")
        return [folder / name for name in names]
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not files:
        raise DGemmaError(f"no .safetensors file in {folder}; a checkpoint folder is needed")
    return files


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The header of one safetensors file, checked against the file's size; its tensors tile the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise DGemmaError(f"{file} is truncated ({size} bytes); download it again")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_without_twins)
            about = header.pop("__metadata__", None)  # MLX writes null where there are none
            if about is not None and not all(isinstance(text, str) for text in about.values()):
                raise ValueError("metadata are texts")  # MLX takes no others
            infos = {name: _tensor_info(name, entry, file, 8 + length, size) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, DGemmaError):
                raise
            raise DGemmaError(f"{file} is not a safetensors file; download it again") from None
    _check_tiling(infos.values(), file, 8 + length, size)
    return infos


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ: of two entries readers would take the one or the other."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands twice")
    return content


def _tensor_info(name: str, entry: dict[str, Any], file: Path, base: int, size: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise DGemmaError(f"{file}: the header entry of {name} is malformed; download it again")
    if base + end > size:
        missing = base + end - size
        raise DGemmaError(f"{file} is truncated: {name} ends {missing} bytes past the end; download it again")
    if end - begin != BYTES[entry["dtype"]] * math.prod(shape):
        raise DGemmaError(f"{file}: {name} has {end - begin} bytes, not those of {entry['dtype']} {shape}")
    return TensorInfo(name, entry["dtype"], shape, file, base + begin, end - begin)


def _check_tiling(infos: Iterable[TensorInfo], file: Path, base: int, size: int) -> None:
    """Each byte of the data belongs to one tensor, as the format demands; shared bytes would be noise in one of two."""
    end, last = base, "the header"
    for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            fault = "overlaps" if info.offset < end else f"begins {info.offset - end} bytes after"
            raise DGemmaError(f"{file}: {info.name} {fault} {last}; download it again")
        end, last = end + info.nbytes, info.name
    if end != size:
        raise DGemmaError(f"{file}: its last {size - end} bytes belong to no tensor; download it again")
