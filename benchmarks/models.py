"""Random checkpoints in the published layout, of any size, that both this package and mlx-vlm load."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma

# The published model in small: the same ratios of widths, heads and layer types.
SMALL_TEXT = {
    "vocab_size": 32_768, "hidden_size": 512, "intermediate_size": 384, "moe_intermediate_size": 128,
    "num_experts": 32, "top_k_experts": 4, "num_hidden_layers": 6, "num_attention_heads": 8,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "head_dim": 64, "num_key_value_heads": 4, "global_head_dim": 128, "num_global_key_value_heads": 1,
    "sliding_window": 1024, "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0,
    "rope_parameters": {
        "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0, "rope_type": "proportional"},
    },
}  # fmt: skip


def config_dict(canvas: int = 256, **text: Any) -> dict[str, Any]:
    """A config.json: the small model, with some of its text fields changed."""
    return {
        "model_type": "diffusion_gemma",
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "canvas_length": canvas,
        "eos_token_id": [1],
        "text_config": {"model_type": "diffusion_gemma_text", **SMALL_TEXT, **text},
    }


def write_random(folder: Path, content: dict[str, Any], seed: int = 0) -> Path:
    """Writes config.json and float32 weights with spreads that keep activations near 1."""
    mx.random.seed(seed)
    model = DiffusionGemma(ModelConfig.from_dict(content))
    weights = {name: _random(name, p) for name, p in tree_flatten(model.parameters())}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def _random(name: str, like: mx.array) -> mx.array:
    if like.ndim == 1:
        return mx.ones_like(like)
    if "embed_tokens" in name:
        return mx.random.normal(like.shape) * 0.1
    return mx.random.normal(like.shape) * like.shape[-1] ** -0.5
