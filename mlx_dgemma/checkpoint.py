"""Reading checkpoint folders: safetensors headers, and a table that says what becomes of every tensor name.

Headers are read first, so that a missing, misshapen or cut-off tensor is found before any weight is.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from mlx_dgemma.errors import DGemmaError

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
# First match wins. Names that match nothing are errors.
RULES = (Rule(VISION, reason="images are not supported yet"), *TEXT_RULES)


def target_name(name: str, rules: tuple[Rule, ...] = RULES) -> str | None:
    """The module path of a checkpoint's tensor; None if it is dropped on purpose."""
    for rule in rules:
        match = rule.pattern.fullmatch(name)
        if match:
            return None if rule.target is None else match.expand(rule.target)
    raise DGemmaError(f"unknown tensor {name}; is this a DiffusionGemma checkpoint?")


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint folder by name, from the headers of its safetensors files alone."""
    infos: dict[str, TensorInfo] = {}
    for file in shard_files(folder):
        infos.update(read_header(file))
    return infos


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files that the index names, or all there are if there is no index."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DGemmaError(f"{index} is not a safetensors index; download it again") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DGemmaError(f"{folder / missing[0]} is missing, but the index names it; finish the download")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DGemmaError(f"no .safetensors file in {folder}; a checkpoint folder is needed")
    return files


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The header of one safetensors file, checked against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise DGemmaError(f"{file} is truncated ({size} bytes); download it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return {name: _tensor_info(name, entry, file, 8 + length, size) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DGemmaError):
                raise
            raise DGemmaError(f"{file} is not a safetensors file; download it again") from None


def _tensor_info(name: str, entry: dict, file: Path, base: int, size: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    if base + end > size:
        missing = base + end - size
        raise DGemmaError(f"{file} is truncated: {name} ends {missing} bytes past the end; download it again")
    shape = tuple(entry["shape"])
    if end - begin != BYTES[entry["dtype"]] * math.prod(shape):
        raise DGemmaError(f"{file}: {name} has {end - begin} bytes, not those of {entry['dtype']} {shape}")
    return TensorInfo(name, entry["dtype"], shape, file, base + begin, end - begin)
