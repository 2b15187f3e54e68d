"""A small random checkpoint that sees: its tensors, file by file."""

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from tests.conftest import CANVAS, TEXT

VISION = {
    "model_type": "gemma4_vision", "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "patch_size": 4, "position_embedding_size": 30,
    "standardize": True, "initializer_range": 0.2,
}  # fmt: skip
TOKENS = {"image_token_id": 117, "boi_token_id": 118, "eoi_token_id": 119}
TOWER, PROJECTION = "model.encoder.vision_tower", "model.encoder.embed_vision.embedding_projection"
GRIDS = ((6, 9), (12, 3))


@cache
@torch.no_grad()
def reference() -> DiffusionGemmaForBlockDiffusion:
    """The model; the position table is not the ones that it starts from, and no norm is one."""
    torch.manual_seed(1)
    config = DiffusionGemmaConfig(text_config=TEXT, vision_config=VISION, canvas_length=CANVAS, **TOKENS)
    model = DiffusionGemmaForBlockDiffusion._from_config(config, attn_implementation="eager").eval()
    tower = model.model.encoder.vision_tower
    for parameter in tower.parameters():
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    tower.patch_embedder.position_embedding_table.normal_()
    tower.std_bias.normal_()
    tower.std_scale.uniform_(0.5, 1.5)
    return model


def save(folder: Path) -> Path:
    """Writes it as transformers does, and puts the vision tensors into a file of their own."""
    reference().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    vision = {name: tensors.pop(name) for name in list(tensors) if "vision" in name}
    save_file(tensors, folder / "model.safetensors")
    save_file(vision, folder / "vision.safetensors")
    return folder


def picture(grid: tuple[int, int]) -> np.ndarray:
    """Patches of noise, (P, 3 · patch²) in [0, 1)."""
    return np.random.default_rng(grid).random((grid[0] * grid[1], 3 * VISION["patch_size"] ** 2), np.float32)


def features(model, grid=GRIDS[0]) -> np.ndarray:
    """What a model of ours sees in it, (1, N, H)."""
    return np.array(model.require_eyes().see(mx.array(picture(grid)), grid))
