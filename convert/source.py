"""What a source checkpoint holds: its kind, its modules by target path, and its tensors in slices of float rows."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint import TEXT_RULES, VISION, Rule, TensorInfo, read_headers, target_name
from mlx_dgemma.config import MODEL_TYPE, ModelConfig
from mlx_dgemma.errors import DGemmaError

from . import gemma4
from .recipes import Format

SLICE = 32 * 2**20  # bytes (as bfloat16) read at a time
_NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "U32": np.uint32, "U8": np.uint8}
_PARTS = ("weight", "scales", "biases")
RULES = (
    Rule(re.compile(r"model\.encoder\.embed_vision\.embedding\..*"), reason="vestigial, nothing reads it"),
    Rule(VISION, r"\g<0>"),
    *TEXT_RULES,
)


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
    def dtype(self) -> str:
        """The float type that the values come in."""
        return "F32" if self.info is None else (self.scales or self.info).dtype

    def slices(self) -> Iterator[mx.array]:
        """The values in runs of rows along the first axis, checked for NaN and Inf."""
        for start in range(0, self.shape[0], self.step):
            values = self.rows(start, min(start + self.step, self.shape[0]))
            if not mx.isfinite(values).all().item():
                where = f"{self.info.file}: tensor {self.info.name}" if self.info else self.made
                raise DGemmaError(f"{where} has NaN or Inf; download it again")
            yield values

    @property
    def step(self) -> int:
        """Rows that take at most SLICE bytes as bfloat16."""
        return max(1, SLICE // (2 * math.prod(self.shape[1:])))

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows start … stop of the first axis, dequantized if need be."""
        if self.info is None:
            return gemma4.initial_value(self.made, self.shape)[start:stop]
        weight = read_rows(self.info, start, stop)
        if self.format is None:
            return weight
        biases = None if self.biases is None else read_rows(self.biases, start, stop)
        scales, f = read_rows(self.scales, start, stop), self.format
        return mx.dequantize(weight, scales, biases, f.group_size, f.bits, mode=f.mode)


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

    @property
    def is_quantized(self) -> bool:
        return any(t.format for t in self.tensors.values())


def open_source(folder: Path) -> Source:
    """Reads config.json and all headers; complains about unknown, missing and misshapen tensors."""
    config = _read_config(folder / "config.json")
    is_gemma4 = config.get("model_type") == gemma4.MODEL_TYPE
    if not is_gemma4 and config.get("model_type") != MODEL_TYPE:
        raise DGemmaError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}; "
            f"{MODEL_TYPE} and {gemma4.MODEL_TYPE} checkpoints can be converted"
        )
    named, dropped = _apply_rules(read_headers(folder), gemma4.RULES if is_gemma4 else RULES)
    if is_gemma4:
        config = gemma4.patched_config(config)
    tensors = _group(named, config.get("quantization") or {})
    if is_gemma4:
        tensors.update(_made(config, tensors))
    _check(folder, config, tensors)
    if is_gemma4:
        config = gemma4.without_own_options(config)
    return Source(folder, config, tensors, dropped, config.get("denoiser_trained", True))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DGemmaError(f"{path} cannot be read ({error}); download it again") from None
    if not isinstance(config, dict):
        raise DGemmaError(f"{path} is not a JSON object; download it again")
    return config


def _apply_rules(
    headers: dict[str, TensorInfo], rules: tuple[Rule, ...]
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    named, dropped = {}, {}
    for name, info in headers.items():
        try:
            target = target_name(name, rules)
        except DGemmaError as error:
            raise DGemmaError(f"{info.file}: {error}") from None
        if target is None:
            dropped[name] = next(rule.reason for rule in rules if rule.pattern.fullmatch(name))
        else:
            named[target] = info
    return named, dropped


def _group(named: dict[str, TensorInfo], quantization: dict[str, Any]) -> dict[str, SourceTensor]:
    """Joins weight, scales and biases of a quantized module into one tensor."""
    tensors = {}
    for target, info in named.items():
        path, _, part = target.rpartition(".")
        if f"{path}.scales" not in named or part not in _PARTS:
            tensors[target] = SourceTensor(info, info.shape)
        elif part == "weight":
            options = {k: v for k, v in quantization.items() if k in ("group_size", "bits", "mode")}
            own = quantization.get(path)
            options = own if isinstance(own, dict) else options
            format = Format(options["bits"], options["group_size"], options.get("mode", "affine"))
            shape = (*info.shape[:-1], info.shape[-1] * 32 // format.bits)
            tensors[target] = SourceTensor(info, shape, named[f"{path}.scales"], named.get(f"{path}.biases"), format)
    return tensors


def _made(config: dict[str, Any], tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors that DiffusionGemma has beyond Gemma 4: encoder layer scalars and self-conditioning."""
    made = gemma4.self_conditioning_shapes(config["text_config"])
    added = {name: SourceTensor(None, shape, made=how) for name, (shape, how) in made.items()}
    for target, tensor in tensors.items():
        if re.fullmatch(r"model\.decoder\.layers\.\d+\.layer_scalar", target):
            added[target.replace("model.decoder.", "model.encoder.language_model.")] = tensor
    return added


def _check(folder: Path, config: dict[str, Any], tensors: dict[str, SourceTensor]) -> None:
    """Every text tensor is there, in the shape that config.json asks for."""
    from mlx.utils import tree_flatten

    from mlx_dgemma.loading import build_model

    try:
        parsed = ModelConfig.from_dict({k: v for k, v in config.items() if k != "quantization"})
    except DGemmaError as error:
        raise DGemmaError(f"{folder / 'config.json'}: {error}") from None
    expected = {name: tuple(p.shape) for name, p in tree_flatten(build_model(parsed).parameters())}
    for name, shape in expected.items():
        if name not in tensors:
            raise DGemmaError(f"{folder}: tensor {name} {shape} is missing; download it again")
        if tensors[name].shape != shape:
            raise DGemmaError(
                f"{_place(folder, tensors[name])} has shape {tensors[name].shape}, config.json asks for {shape}"
            )
    unexpected = sorted(n for n in tensors if n not in expected and not VISION.fullmatch(n))
    if unexpected:
        place = _place(folder, tensors[unexpected[0]])
        raise DGemmaError(f"{place} is unexpected; config.json describes another model")


def _place(folder: Path, tensor: SourceTensor) -> str:
    return f"{tensor.info.file if tensor.info else folder}: tensor {tensor.origin}"
