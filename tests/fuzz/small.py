"""A checkpoint that is smaller than any, in the published layout, with the embedded one's tokenizer."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_dgemma.checkpoint.loading import EMBEDDED, build_model
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.request import Request

CANVAS, VOCABULARY = 16, 100
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32,
    "num_experts": 4, "top_k_experts": 2, "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"], "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_global_key_value_heads": 1, "head_dim": 32, "global_head_dim": 32, "sliding_window": 16,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True,
    "use_bidirectional_attention": "vision", "pad_token_id": 0, "model_type": "diffusion_gemma_text",
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    },
}  # fmt: skip
CONFIG = {
    "architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma", "canvas_length": CANVAS,
    "dtype": "bfloat16", "eos_token_id": [1, 4], "text_config": TEXT, "tie_word_embeddings": True,
}  # fmt: skip
GENERATION = {
    "max_new_tokens": 16, "max_denoising_steps": 3, "t_max": 0.8, "t_min": 0.4, "confidence_threshold": 0.005,
    "stability_threshold": 1, "eos_token_id": [1, 4], "pad_token_id": 0,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
}  # fmt: skip
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write(folder: Path) -> Path:
    """Writes the checkpoint; all its weights are random and matter."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, keys = {}, iter(mx.random.split(mx.random.key(0), 200))
    for name, parameter in tree_flatten(build_model(ModelConfig.from_dict(CONFIG)).parameters()):
        centre, spread = (1.0, 0.2) if parameter.ndim == 1 else (0.0, 0.3 if "embed" in name else 0.1)
        published = name.removesuffix(".weight") if ".experts." in name else name
        weights[published] = (centre + spread * mx.random.normal(parameter.shape, key=next(keys))).astype(mx.bfloat16)
    weights["model.encoder.embed_vision.embedding_projection.weight"] = mx.ones((4, 4), mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=1))
    for name in SIDE_FILES:
        shutil.copy(EMBEDDED / name, folder)
    return folder


@cache
def original() -> Path:
    """The folder, which nobody writes to; it goes when the process ends."""
    holder = tempfile.TemporaryDirectory(prefix="fuzz-original-")
    _held.append(holder)
    return write(Path(holder.name) / "small")


_held: list[tempfile.TemporaryDirectory[str]] = []


def copy(folder: Path) -> Path:
    """A copy under `folder`, to be spoiled."""
    return Path(shutil.copytree(original(), folder / "small"))


@cache
def engine() -> Engine:
    """Of the original."""
    return Engine.load(original())


@cache
def text() -> str:
    """What the original answers to `REQUEST`."""
    return engine().generate(REQUEST).text


REQUEST = Request("sort: d b a c", seed=3)
