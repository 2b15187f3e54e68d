"""The plan: every tensor that will be written, with source, shape, format and bytes, before any tensor is read."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mlx_dgemma import __version__
from mlx_dgemma.checkpoint.headers import BYTES
from mlx_dgemma.errors import DGemmaError

from . import recipes
from .recipes import Format, Rules
from .source import Source, SourceTensor

SHARD_BYTES = 5_000_000_000
PARTS = (
    ("experts", recipes.EXPERTS),
    ("attention", recipes.ATTENTION),
    ("embedding", recipes.EMBEDDING),
    ("dense MLP", recipes.DENSE),
    ("self-conditioning", recipes.SELF_CONDITIONING),
    ("router", recipes.ROUTER),
    ("vision", r"model\.encoder\.(vision_tower|embed_vision)\..*"),
    ("norms and scalars", r".*"),
)
_QUANTIZABLE = re.compile("|".join(f"(?:{pattern})" for _, pattern in PARTS[:6]) + f"|{recipes.PROJECTOR}")


@dataclass(frozen=True)
class Output:
    """One tensor of the target."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Job:
    """One source tensor and what it becomes: itself in `dtype`, or weight, scales and maybe biases."""

    target: str
    source: SourceTensor
    dtype: str
    format: Format | None
    outputs: tuple[Output, ...]
    is_copy: bool = False  # of a quantized module, packed as it is

    @property
    def how(self) -> str:
        same = self.is_copy or (self.format is None and self.source.format is None)
        name = str(self.format) if self.format else "unquantized"
        return f"{name}, as it is" if same and self.dtype == (self.source.dtype or self.dtype) else name

    @property
    def path(self) -> str:
        return self.target.removesuffix(".weight")

    @property
    def part(self) -> str:
        return next(part for part, pattern in PARTS if re.fullmatch(pattern, self.path))

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)


@dataclass(frozen=True)
class Plan:
    jobs: tuple[Job, ...]
    notes: tuple[str, ...]
    dropped: dict[str, str]  # source name -> reason

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)

    @property
    def tensors(self) -> int:
        return sum(len(job.outputs) for job in self.jobs)

    def shards(self, limit: int = SHARD_BYTES) -> list[tuple[Job, ...]]:
        """Consecutive jobs, at most `limit` bytes together; a module is never torn apart."""
        shards: list[tuple[Job, ...]] = []
        current: list[Job] = []
        size = 0
        for job in self.jobs:
            if current and size + job.nbytes > limit:
                shards.append(tuple(current))
                current, size = [], 0
            current.append(job)
            size += job.nbytes
        return [*shards, tuple(current)]

    def files(self) -> dict[str, tuple[Job, ...]]:
        """The shards by file name."""
        shards = self.shards()
        return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": jobs for i, jobs in enumerate(shards)}

    def quantization(self) -> dict[str, Any] | None:
        """The `quantization` dict for config.json; None if nothing is quantized."""
        formats = {job.path: job.format for job in self.jobs if job.format}
        return recipes.quantization_config(formats) if formats else None

    def fingerprint(self) -> str:
        """Changes with anything that would change a byte of the weights."""
        rows = [[job.target, job.dtype, str(job.format), job.is_copy, _origin(job.source)] for job in self.jobs]
        layout = {name: len(jobs) for name, jobs in self.files().items()}
        return hashlib.sha256(json.dumps([rows, layout, __version__, version("mlx")]).encode()).hexdigest()

    def by_part(self) -> dict[str, tuple[int, int]]:
        """Elements and bytes by part of the model."""
        totals: dict[str, tuple[int, int]] = {}
        for job in self.jobs:
            elements, nbytes = totals.get(job.part, (0, 0))
            totals[job.part] = (elements + math.prod(job.source.shape), nbytes + job.nbytes)
        return {part: totals[part] for part, _ in PARTS if part in totals}


def _origin(source: SourceTensor) -> list[Any]:
    """What identifies a source tensor: two checkpoints of one architecture must not be taken for each other."""
    origin: list[Any] = [source.made, str(source.format)]
    for info in filter(None, (source.info, source.scales, source.biases)):
        status = info.file.stat()
        origin += [str(info.file.resolve()), status.st_size, status.st_mtime_ns, info.offset]
        origin += [info.name, info.dtype, info.nbytes]
    return origin


def make_plan(source: Source, rules: Rules, dtype: str | None = None) -> Plan:
    """Decides format and type of every tensor. `dtype` (safetensors' name) is for all floats; None keeps theirs."""
    jobs, notes = [], list(source.notes)
    default = source.tensors["model.decoder.norm.weight"].dtype
    for target, tensor in sorted(source.tensors.items(), key=lambda item: _model_order(item[0])):
        own = tensor.dtype or default
        if own not in ("BF16", "F16", "F32"):
            raise DGemmaError(f"tensor {tensor.origin} is {own}; only BF16, F16 and F32 weights can be converted")
        format, note = _choose(target, tensor, rules)
        notes += [note] if note else []
        outputs = _outputs(target, tensor.shape, dtype or own, format)
        is_copy = format is not None and format == tensor.format
        jobs.append(Job(target, tensor, dtype or own, format, outputs, is_copy))
    for pattern, wanted in rules:
        if wanted != recipes.KEEP and not any(re.fullmatch(pattern, job.path) for job in jobs):
            raise DGemmaError(f"no module matches {pattern.removeprefix('.*(?:').removesuffix(').*')!r}")
    return Plan(tuple(jobs), tuple(notes), source.dropped)


def _choose(target: str, tensor: SourceTensor, rules: Rules) -> tuple[Format | None, str]:
    path = target.removesuffix(".weight")
    wanted = recipes.format_of(path, rules) if _QUANTIZABLE.fullmatch(path) else None
    if wanted is None:
        return None, ""
    if isinstance(wanted, str):  # KEEP
        return tensor.format, ""
    width = tensor.shape[-1]
    format = wanted.fitting(width)
    if format is None:
        return None, f"{path} stays unquantized: no group of {wanted.mode} divides {width}"
    if format != wanted:
        return format, f"{path} gets groups of {format.group_size}: {wanted.group_size} does not divide {width}"
    return format, ""


def _outputs(target: str, shape: tuple[int, ...], dtype: str, format: Format | None) -> tuple[Output, ...]:
    if format is None:
        return (Output(target, dtype, shape),)
    path, (*rows, width) = target.removesuffix(".weight"), shape
    groups = (*rows, width // format.group_size)
    weight = Output(target, "U32", (*rows, width * format.bits // 32))
    if format.mode != "affine":
        return weight, Output(f"{path}.scales", "U8", groups)
    return weight, Output(f"{path}.scales", dtype, groups), Output(f"{path}.biases", dtype, groups)


def _model_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Embedding first, then layer by layer, encoder last; numbers in names sort as numbers."""
    place = 0 if "embed_tokens" in name else 2 if name.startswith("model.encoder") else 1
    return place, [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in name.split(".")]
