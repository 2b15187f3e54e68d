"""What a source checkpoint holds: its kind, its modules by target path, and its tensors in slices of float rows."""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.eyes import build_vision, by_path
from mlx_dgemma.checkpoint.headers import (
    TEXT_RULES,
    VESTIGIAL,
    VISION,
    Rule,
    TensorInfo,
    by_target,
    read_headers,
    rule_for,
    target_name,
)
from mlx_dgemma.checkpoint.loading import build_model, load_tokenizer
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.config import ModelConfig, read_config
from mlx_dgemma.model.vision_config import VisionConfig

from . import gemma4
from .recipes import Format

GENERATION = "generation_config.json"
SLICE = 32 * 2**20  # bytes (as bfloat16) read at a time
_NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "U32": np.uint32, "U8": np.uint8}
_PARTS = ("weight", "scales", "biases")
RULES = (VESTIGIAL, Rule(VISION, r"\g<0>"), *TEXT_RULES)  # of the vision tower's tensors the names are kept


@dataclass(frozen=True)
class SourceTensor:
    """A float tensor of the source: plain, quantized (then `scales` and maybe `biases` belong to it), or made here."""

    info: TensorInfo | None
    shape: tuple[int, ...]
    scales: TensorInfo | None = None
    biases: TensorInfo | None = None
    format: Format | None = None
    made: str = ""

    @property
    def origin(self) -> str:
        return self.info.name if self.info else self.made

    @property
    def dtype(self) -> str | None:
        """The float type of the values; None if they bring none of their own (made here, or with integer scales)."""
        info = self.scales or self.info
        return None if info is None or info.dtype == "U8" else info.dtype

    @property
    def step(self) -> int:
        """Rows that take at most SLICE bytes as bfloat16."""
        return max(1, SLICE // (2 * math.prod(self.shape[1:])))

    def runs(self) -> Iterator[tuple[int, int]]:
        """Runs of rows along the first axis, start and stop."""
        for start in range(0, self.shape[0], self.step):
            yield start, min(start + self.step, self.shape[0])

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows start … stop of the first axis, dequantized if need be, checked for NaN and Inf."""
        if self.info is None:
            return gemma4.initial_value(self.made, self.shape)[start:stop]
        values = self.packed(start, stop)
        if self.format is not None:
            f, (weight, scales, *rest) = self.format, values
            biases = rest[0] if rest else None
            values = (mx.dequantize(weight, scales, biases, f.group_size, f.bits, mode=f.mode),)
        if not mx.isfinite(values[0]).all().item():
            raise DGemmaError(f"{self.info.file}: tensor {self.info.name} has NaN or Inf; download it again")
        return values[0]

    def packed(self, start: int, stop: int) -> tuple[mx.array, ...]:
        """The same rows as they are stored: the tensor, or weight, scales and maybe biases."""
        return tuple(read_rows(info, start, stop) for info in (self.info, self.scales, self.biases) if info)


def read_rows(info: TensorInfo, start: int, stop: int) -> mx.array:
    """Rows start … stop of a tensor's first axis, read without mapping the file."""
    row = info.nbytes // info.shape[0]
    with info.file.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), row * (stop - start), info.offset + row * start)
    if info.dtype not in _NUMPY or len(data) != row * (stop - start):
        raise DGemmaError(f"{info.file}: tensor {info.name} ({info.dtype}) cannot be read; download it again")
    array = mx.array(np.frombuffer(data, _NUMPY[info.dtype]).reshape(stop - start, *info.shape[1:]))
    return array.view(mx.bfloat16) if info.dtype == "BF16" else array


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert. `config` is what the target's config.json starts from."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]  # by target name, "….weight" for anything that could be quantized
    dropped: dict[str, str]  # source name -> reason
    denoiser_trained: bool
    notes: tuple[str, ...] = ()

    @property
    def is_quantized(self) -> bool:
        return any(t.format for t in self.tensors.values())


def open_source(folder: Path) -> Source:
    """Reads config.json and all headers; complains about unknown, missing and misshapen tensors."""
    config = read_config(folder / "config.json")
    is_gemma4 = config.get("model_type") == gemma4.MODEL_TYPE
    rules = gemma4.RULES if is_gemma4 else RULES
    try:
        if is_gemma4:
            config = gemma4.patched_config(config)
        parsed = ModelConfig.from_dict(config)
    except DGemmaError as error:
        raise DGemmaError(f"{folder / 'config.json'}: {error}") from None
    _check_side_files(folder, parsed, is_gemma4)
    headers = read_headers(folder)
    tensors = _group(by_target(headers, rules), parsed.quantization)
    if is_gemma4:
        made = _made(parsed, tensors)
        for name in sorted(made.keys() & tensors.keys()):
            raise DGemmaError(f"{_place(folder, tensors[name])} is unexpected; plain Gemma 4 has no such tensor")
        tensors.update(made)
        config = gemma4.without_own_options(config)
    vision, notes = _vision(config)
    _check(folder, parsed, vision, tensors)
    dropped = {name: rule_for(name, rules).reason for name in headers if target_name(name, rules) is None}
    return Source(folder, config, tensors, dropped, parsed.denoiser_trained, notes)


def _check_side_files(folder: Path, config: ModelConfig, is_gemma4: bool) -> None:
    """What is copied can be read: else the target would be refused when it is loaded, an hour later."""
    path = folder / GENERATION
    if path.is_file() and not is_gemma4:
        GenerationConfig.from_file(path)
    elif not path.is_file():
        GenerationConfig.from_dict(config.generation_config or {})
    elif not _is_id_list(read_config(path).get("eos_token_id")):
        raise DGemmaError(f"{path}: eos_token_id is no list of token ids; download it again")
    load_tokenizer(folder)


def _is_id_list(value: Any) -> bool:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return all(type(token) is int and token >= 0 for token in ids)


def _group(named: dict[str, TensorInfo], quantization: dict[str, Any] | None) -> dict[str, SourceTensor]:
    """Joins weight, scales and biases of a quantized module into one tensor."""
    tensors = {}
    for target, info in named.items():
        if not info.shape or 0 in info.shape:
            raise DGemmaError(f"{info.file}: tensor {info.name} has shape {info.shape}; download it again")
        path, _, part = target.rpartition(".")
        if f"{path}.scales" not in named or part not in _PARTS:
            tensors[target] = SourceTensor(info, info.shape)
        elif quantization is None:
            raise DGemmaError(f"{info.file}: {path} is quantized, but config.json has no quantization")
        elif part == "weight":
            own = quantization.get(path)
            options = own if isinstance(own, dict) else quantization
            format = Format(options["bits"], options["group_size"], options.get("mode", "affine"))
            shape = (*info.shape[:-1], info.shape[-1] * 32 // format.bits)
            scales, biases = named[f"{path}.scales"], named.get(f"{path}.biases")
            groups = (*shape[:-1], shape[-1] // format.group_size)
            parts = (scales, biases) if format.mode == "affine" else (scales,)
            if any(part is None or part.shape != groups for part in parts):
                raise DGemmaError(f"{info.file}: {path} lacks scales or biases of shape {groups}; download it again")
            tensors[target] = SourceTensor(info, shape, scales, biases, format)
    return tensors


def _made(config: ModelConfig, tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors that DiffusionGemma has beyond Gemma 4: encoder layer scalars and self-conditioning."""
    made = gemma4.self_conditioning_shapes(config)
    added = {name: SourceTensor(None, shape, made=how) for name, (shape, how) in made.items()}
    for target, tensor in tensors.items():
        if re.fullmatch(r"model\.decoder\.layers\.\d+\.layer_scalar", target):
            added[target.replace("model.decoder.", "model.encoder.language_model.")] = tensor
    return added


def _check(folder: Path, config: ModelConfig, vision: VisionConfig | None, tensors: dict[str, SourceTensor]) -> None:
    """Every tensor is there, in the shape that config.json asks for; of a tower without `vision` nothing is known."""
    dense = dataclasses.replace(config, quantization=None)
    expected = build_model(dense).tensors()
    if vision is not None and any(VISION.fullmatch(name) for name in tensors):
        expected |= by_path(build_vision(vision, dense))
    found = {target_name(name) or name: tensor for name, tensor in tensors.items()}
    for name, parameter in expected.items():
        if name not in found:
            raise DGemmaError(f"{folder}: tensor {name} {parameter.shape} is missing; download it again")
        if found[name].shape != parameter.shape:
            place, shape = _place(folder, found[name]), found[name].shape
            raise DGemmaError(f"{place} has shape {shape}, config.json asks for {parameter.shape}")
    unexpected = sorted(n for n in found if n not in expected and not (vision is None and VISION.fullmatch(n)))
    if unexpected:
        place = _place(folder, found[unexpected[0]])
        raise DGemmaError(f"{place} is unexpected; config.json describes another model")


def _vision(config: dict[str, Any]) -> tuple[VisionConfig | None, tuple[str, ...]]:
    """What config.json says of the vision tower, and a note where that is not known here."""
    try:
        return VisionConfig.from_dict(config), ()
    except DGemmaError as error:
        return None, (f"the vision tower is copied unchecked, as it cannot be used: {error}",)


def _place(folder: Path, tensor: SourceTensor) -> str:
    return f"{tensor.info.file if tensor.info else folder}: tensor {tensor.origin}"
