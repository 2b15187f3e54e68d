"""The model built from the published config.json has exactly the published tensors, and takes no memory."""

import csv
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_dgemma.checkpoint.eyes import build_vision, by_path
from mlx_dgemma.checkpoint.headers import VISION, target_name
from mlx_dgemma.checkpoint.loading import build_model
from mlx_dgemma.model.config import ModelConfig, read_config
from mlx_dgemma.model.vision_config import VisionConfig

DATA = Path(__file__).parents[1] / "data"


def published_tensors() -> dict[str, tuple[int, ...]]:
    with (DATA / "tensors.tsv").open() as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["name"]: tuple(map(int, row["shape"].split(","))) for row in rows}


def test_exactly_the_published_text_tensors():
    tensors = published_tensors()
    assert len(tensors) == 1047
    before = mx.get_active_memory()
    model = build_model(ModelConfig.from_file(DATA / "config.json"))
    ours = {name: tuple(p.shape) for name, p in tree_flatten(model.parameters())}
    assert mx.get_active_memory() - before < 10_000_000  # lazy: 50 GB of weights, none of them made
    published = {target_name(name): shape for name, shape in tensors.items() if target_name(name)}
    assert ours == {target: shape for target, shape in published.items() if not VISION.fullmatch(target)}
    assert len(published) == len(tensors)  # none is dropped


def test_exactly_the_published_vision_tensors():
    published = {target_name(name): shape for name, shape in published_tensors().items() if VISION.fullmatch(name)}
    before = mx.get_active_memory()
    vision = VisionConfig.from_dict(read_config(DATA / "config.json"))
    ours = by_path(build_vision(vision, ModelConfig.from_file(DATA / "config.json")))
    assert {name: parameter.shape for name, parameter in ours.items()} == published and len(ours) == 356
    assert mx.get_active_memory() - before < 1_000_000


def test_published_4bit_recipe_gives_the_published_bytes():
    """mlx-community's 4-bit recipe, text part: 16,542,844,632 bytes less what belongs to vision."""
    config = ModelConfig.from_file(DATA / "config.json")
    eight = {"group_size": 64, "bits": 8}
    modules = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "router.proj"]
    modules += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    overrides = {f"model.decoder.layers.{i}.{m}": eight for i in range(len(config.layers)) for m in modules}
    recipe = {"group_size": 64, "bits": 4, "mode": "affine", "model.decoder.embed_tokens": eight, **overrides}
    dense = build_model(config)
    names = {f"{path}.scales" for path, m in dense.named_modules() if hasattr(m, "to_quantized")}
    model = build_model(ModelConfig(**{**vars(config), "quantization": recipe}), names)
    text = 0
    for name, p in tree_flatten(model.parameters()):
        text += p.size * (4 if name.endswith(".weight") and p.dtype == mx.uint32 else 2)
    vision = sum(
        2 * _size(shape) for name, shape in published_tensors().items() if "vision_tower" in name
    ) + _projection_bytes(published_tensors()["model.encoder.embed_vision.embedding_projection.weight"])
    assert text + vision == 16_542_844_632


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _projection_bytes(shape: tuple[int, ...]) -> int:
    groups = _size(shape) // 64
    return _size(shape) // 2 + groups * 2 * 2  # 4 bits a weight, two bfloat16 a group
