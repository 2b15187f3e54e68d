"""A checkpoint's vision tower: whether one works here, and its weights, which are read at the first image.

All that headers tell is checked when the text model is loaded: a missing or misshapen tensor is found then, and not in
the middle of a conversation. What nobody can see with is no error before somebody shows an image.
"""

from functools import partial
from pathlib import Path

import mlx.core as mx

from mlx_dgemma.checkpoint.headers import VISION, TensorInfo, by_target, read_headers
from mlx_dgemma.checkpoint.weights import check_tensors, fill, quantize
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.model import memory
from mlx_dgemma.model.config import ModelConfig, read_config
from mlx_dgemma.model.layers import tensors
from mlx_dgemma.model.vision import Eyes, Vision
from mlx_dgemma.model.vision_config import VisionConfig

PREFIX = "model.encoder."  # of the names of tower and projector


def apart(sources: dict[str, TensorInfo]) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """The tensors of the text model, and those of vision tower and projector."""
    vision = {target: info for target, info in sources.items() if VISION.fullmatch(target)}
    return {target: info for target, info in sources.items() if target not in vision}, vision


def find_eyes(
    folder: Path, config: ModelConfig, sources: dict[str, TensorInfo], dtype: mx.Dtype, vision_dtype: mx.Dtype
) -> tuple[Eyes | None, str]:
    """What a checkpoint sees with, or None and why it does not see.

    Args:
        folder: of the checkpoint.
        config: of its text model.
        sources: its vision tensors.
        dtype: of the text model, which the soft tokens get.
        vision_dtype: of weights and activations of the tower.

    Raises:
        DGemmaError: a vision tensor that is missing, misshapen or unexpected.
    """
    try:
        vision = VisionConfig.from_dict(read_config(folder / "config.json"))
    except DGemmaError as error:
        return None, f"this checkpoint's vision tower cannot be used: {error}"
    if vision is None or not sources:
        where = "config.json has no vision_config" if vision is None else f"no tensor is named {PREFIX}vision_tower"
        return None, f"this checkpoint has no vision tower ({where}); images need one that has"
    check_tensors(sources, by_path(build_vision(vision, config, set(sources))))
    if not vision.has_tokens(config.vocab_size):
        size = f"image_token_id is {vision.image_token_id}, vocab_size {config.vocab_size}"
        return None, f"this checkpoint's vocabulary has no image token ({size}); images need a checkpoint that has"
    return Eyes(vision, partial(_read, folder, vision, config, vision_dtype), dtype), ""


def build_vision(vision: VisionConfig, config: ModelConfig, names: set[str] | frozenset[str] = frozenset()) -> Vision:
    """Tower and projector without weights (all lazy): quantized where the config and the checkpoint's `names` say."""
    try:
        module = Vision(vision, config.hidden_size)
    except (ValueError, OverflowError, MemoryError) as error:
        raise DGemmaError(f"config.json: no arrays have its sizes ({first_line(error)}); download it again") from None
    options = config.quantization and {p.removesuffix(".linear"): own for p, own in config.quantization.items()}
    quantize(module, options, names, PREFIX)
    return module


def by_path(module: Vision) -> dict[str, mx.array]:
    """Its parameters, by the target of their tensors."""
    return {PREFIX + name: parameter for name, parameter in tensors(module).items()}


def _read(folder: Path, vision: VisionConfig, config: ModelConfig, dtype: mx.Dtype) -> Vision:
    """The tower with its weights; the files may have changed since the text model was loaded, so all is checked."""
    _, sources = apart(by_target(read_headers(folder)))
    module = build_vision(vision, config, set(sources))
    check_tensors(sources, by_path(module))
    with memory.explained():
        fill(module, sources, dtype, PREFIX)
        module.fuse()
    module.eval()
    return module
