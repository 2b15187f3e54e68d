"""Filling module trees from checkpoint files: formats, shapes, and one tensor in memory at a time."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.checkpoint.headers import TensorInfo
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.model import cpu
from mlx_dgemma.model.layers import tensors

FLOATS = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
PACKED = ("U32", "U8")  # quantized weights, and the scales of some formats


def quantize(
    module: nn.Module, quantization: dict[str, Any] | None, names: Collection[str] = (), prefix: str = ""
) -> None:
    """Gives a tree without weights the quantized formats that the config and the checkpoint's `names` say.

    Args:
        quantization: config.json's: the format of all modules that have scales, and of others by path.
        names: of the checkpoint's tensors.
        prefix: of the module's own names there, with its dot.
    """
    if quantization is None:
        return
    options = dict(quantization)
    default = {key: options.pop(key) for key in ("group_size", "bits", "mode") if key in options}

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        own: bool | dict[str, Any] = options.get(prefix + path, f"{prefix}{path}.scales" in names)
        return own

    try:
        nn.quantize(module, **default, class_predicate=predicate)
    except (ValueError, TypeError) as error:
        raise DGemmaError(f"config.json: quantization cannot be applied: {first_line(error)}") from None


def check_tensors(sources: dict[str, TensorInfo], parameters: dict[str, mx.array]) -> None:
    """Every parameter has its tensor, in its shape and of a type that can be read, and no tensor is left over."""
    for target, parameter in parameters.items():
        if target not in sources:
            raise DGemmaError(f"tensor {target} {parameter.shape} is missing from the checkpoint; download it again")
        info = sources[target]
        if info.shape != parameter.shape:
            raise DGemmaError(
                f"{info.file.name}: tensor {info.name} has shape {info.shape}, config.json asks for {parameter.shape}"
            )
        if info.dtype not in FLOATS and info.dtype not in PACKED:
            raise DGemmaError(f"{info.file.name}: tensor {info.name} is {info.dtype}, which is not supported")
    unexpected = sorted(set(sources) - set(parameters))
    if unexpected:
        raise DGemmaError(f"unexpected tensor {unexpected[0]}; config.json describes another model")


def check_dtype(dtype: mx.Dtype) -> mx.Dtype:
    """A type that weights and activations may have on this device."""
    if dtype not in FLOATS.values():
        raise DGemmaError(f"dtype {dtype} is not supported, use bfloat16, float16 or float32")
    if cpu.on_cpu() and dtype != mx.float32:
        raise DGemmaError(f"dtype {dtype} needs a GPU (MLX's CPU lacks it or is wrong by percents); use float32")
    return dtype


def fill(module: nn.Module, sources: dict[str, TensorInfo], dtype: mx.Dtype, prefix: str = "") -> None:
    """Reads the module's weights; floats are converted to dtype, packed integers stay as they are."""
    weights = _lazy_weights(sources, dtype)
    module.load_weights([(target.removeprefix(prefix), array) for target, array in weights.items()])
    del weights
    for parameter in tensors(module).values():
        mx.eval(parameter)  # one by one, so that a converted tensor's source is gone before the next is read


def _lazy_weights(sources: dict[str, TensorInfo], dtype: mx.Dtype) -> dict[str, mx.array]:
    """By target."""
    weights = {}
    files = {file: _lazy_arrays(file) for file in {info.file for info in sources.values()}}
    for target, info in sources.items():
        array = files[info.file].pop(info.name)
        weights[target] = array if info.dtype in PACKED else array.astype(dtype)
    return weights


def _lazy_arrays(file: Path) -> dict[str, mx.array]:
    """MLX's own reading of a file, which may refuse a header that ours takes: metadata that are no texts, say."""
    try:
        arrays = mx.load(str(file), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise DGemmaError(f"{file} cannot be read ({first_line(error)}); download it again") from None
    assert isinstance(arrays, dict)  # what this format is read as
    return arrays
