"""Plain Gemma 4 26B A4B as a source: the encoder-denoiser patch.

The decoder takes Gemma's weights, the encoder's layer scalars copy the decoder's, and self-conditioning starts so that
its contribution is exactly zero (down_proj = 0, as residual branches are usually started). The encoder then is Gemma 4;
the denoiser has never seen noise, which config.json says (`denoiser_trained: false`).
"""

import re
from typing import Any

import mlx.core as mx

from mlx_dgemma.checkpoint.headers import VESTIGIAL, Rule
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.config import ModelConfig

MODEL_TYPE = "gemma4"
RULES = (
    Rule(re.compile(r"lm_head\.weight"), reason="tied to the embedding"),
    Rule(re.compile(r"model\.(audio_tower|embed_audio)\..*"), reason="DiffusionGemma has no audio"),
    Rule(re.compile(r"model\.embed_vision\.embedding\..*"), reason=VESTIGIAL.reason),
    Rule(re.compile(r"model\.(vision_tower|embed_vision)\.(.*)"), r"model.encoder.\1.\2"),
    Rule(
        re.compile(r"model\.language_model\.(layers\.\d+\.experts\.(?:gate_up|down)_proj)"), r"model.decoder.\1.weight"
    ),
    Rule(re.compile(r"model\.language_model\.(.*)"), r"model.decoder.\1"),
)
# Gemma 4 options that DiffusionGemma has no field for.
_DROPPED = (
    "attention_k_eq_v",
    "enable_moe_block",
    "hidden_size_per_layer_input",
    "num_kv_shared_layers",
    "use_double_wide_mlp",
    "vocab_size_per_layer_input",
    "use_cache",
)


def patched_config(config: dict[str, Any]) -> dict[str, Any]:
    """DiffusionGemma's config.json from Gemma 4's, with Gemma 4's own options still in it, to be checked."""
    if not isinstance(config.get("text_config"), dict):
        raise DGemmaError("text_config is missing")
    text = {**config["text_config"], "model_type": "diffusion_gemma_text"}
    tokens = ("boi_token_id", "eoi_token_id", "image_token_id", "eos_token_id")
    kept = ("vision_config", "vision_soft_tokens_per_image", "dtype", *tokens)
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "text_config": text,
        **{k: config[k] for k in kept if k in config},
        "canvas_length": 256,
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "denoiser_trained": False,
    }


def without_own_options(config: dict[str, Any]) -> dict[str, Any]:
    text = {k: v for k, v in config["text_config"].items() if k not in _DROPPED}
    return {**config, "text_config": text}


def self_conditioning_shapes(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and way of making of each self-conditioning tensor, by target name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    prefix = "model.decoder.self_conditioning"
    return {
        f"{prefix}.pre_norm.weight": ((hidden,), "ones"),
        f"{prefix}.gate_proj.weight": ((inner, hidden), "normal 0"),
        f"{prefix}.up_proj.weight": ((inner, hidden), "normal 1"),
        f"{prefix}.down_proj.weight": ((hidden, inner), "zeros"),
    }


def initial_value(how: str, shape: tuple[int, ...]) -> mx.array:
    """ones, zeros, or "normal SEED" with the reference's initializer range, 0.02."""
    if how.startswith("normal"):
        return 0.02 * mx.random.normal(shape, key=mx.random.key(int(how.split()[1])))
    return mx.ones(shape) if how == "ones" else mx.zeros(shape)
