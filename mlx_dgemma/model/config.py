"""Model configuration, read from a checkpoint's config.json.

Two dialects describe the full-attention layers: `global_head_dim` with `num_global_key_value_heads` (as published), and
`per_layer_config` (as transformers ≥ 5.16 saves). Both are read. What nobody uses is ignored; a value that would change
the result and is not supported is refused by name.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import read_file
from mlx_dgemma.model.fields import positive_float, positive_int, refuse_unsupported

FULL, SLIDING = "full_attention", "sliding_attention"
MODEL_TYPE = "diffusion_gemma"
MAX_LAYERS = 1000  # no model has as many, and each takes memory before the first tensor is looked at
_REFERENCE_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
# Fields of the Gemma 4 family that change the network: the only values this implementation computes.
_ONLY_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attention_k_eq_v": (True,),
    "enable_moe_block": (True,),
    "hidden_size_per_layer_input": (0, None),
    "num_kv_shared_layers": (0, None),
    "use_double_wide_mlp": (False,),
    "use_bidirectional_attention": ("vision", None),
    "tie_word_embeddings": (True,),
}


@dataclass(frozen=True)
class LayerConfig:
    """Attention geometry of one layer. `window` is None for full attention."""

    head_dim: int
    num_key_value_heads: int
    window: int | None
    rope: dict[str, Any]

    @property
    def has_value_projection(self) -> bool:
        return self.window is not None  # full layers take the raw keys as values


@dataclass(frozen=True)
class ModelConfig:
    """Everything the text model needs; sizes in elements, ids in the tokenizer's vocabulary."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    top_k_experts: int
    num_attention_heads: int
    rms_norm_eps: float
    final_logit_softcapping: float
    max_position_embeddings: int
    canvas_length: int
    layers: tuple[LayerConfig, ...]
    eos_token_id: tuple[int, ...]
    quantization: dict[str, Any] | None
    generation_config: dict[str, Any] | None
    denoiser_trained: bool
    images_both_ways: bool = True

    @classmethod
    def from_file(cls, path: Path) -> "ModelConfig":
        """Reads config.json; every complaint names the file and the field."""
        try:
            return cls.from_dict(read_config(path))
        except DGemmaError as error:
            raise DGemmaError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ModelConfig":
        """Builds the configuration from the content of a config.json, in either dialect."""
        try:
            return cls._from_dict(content)
        except DGemmaError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:  # a list, say
            raise DGemmaError(f"the configuration is malformed ({first_line(error)}); download it again") from None

    @classmethod
    def _from_dict(cls, content: dict[str, Any]) -> "ModelConfig":
        model_type = content.get("model_type")
        if model_type != MODEL_TYPE:
            raise DGemmaError(f"model_type is {model_type!r}, this package runs {MODEL_TYPE!r} checkpoints only")
        text = content.get("text_config")
        if not isinstance(text, dict):
            raise DGemmaError("text_config is missing")
        refuse_unsupported(content, _ONLY_SUPPORTED, "")
        refuse_unsupported(text, _ONLY_SUPPORTED, "text_config.")
        eos = content.get("eos_token_id", text.get("eos_token_id"))
        config = cls(
            **{name: positive_int(text, name) for name in _TEXT_SIZES},
            rms_norm_eps=positive_float(text, "rms_norm_eps", 1e-6),
            final_logit_softcapping=positive_float(text, "final_logit_softcapping", 30.0),
            max_position_embeddings=positive_int(text, "max_position_embeddings", 131_072),
            canvas_length=positive_int(content, "canvas_length", 256, section=""),
            layers=_layers(text),
            eos_token_id=_ids("eos_token_id", eos),
            quantization=quantization_of(content),
            generation_config=content.get("generation_config"),
            denoiser_trained=content.get("denoiser_trained", True),
            images_both_ways=text.get("use_bidirectional_attention", "vision") == "vision",
        )
        if config.top_k_experts > config.num_experts:
            raise DGemmaError(f"text_config.top_k_experts is {config.top_k_experts} of {config.num_experts} experts")
        return config


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json."""
    try:
        content = json.loads(read_file(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DGemmaError(f"{path} is not valid JSON ({first_line(error)}); download it again") from None
    if not isinstance(content, dict):
        raise DGemmaError(f"{path} is not a JSON object; download it again")
    return content


_TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts",
    "top_k_experts",
    "num_attention_heads",
)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and token >= 0 for token in ids):
        raise DGemmaError(f"{name} is {value!r}, it must be a token id or a list of them")
    return ids


def _layers(text: dict[str, Any]) -> tuple[LayerConfig, ...]:
    overrides = _layer_overrides(text)
    layers = []
    for index, kind in enumerate(_layer_types(text)):
        override = overrides.get(index, {})
        sizes = {**text, **override}
        head_dim = positive_int(sizes, "head_dim")
        kv_heads = positive_int(sizes, "num_key_value_heads")
        if positive_int(text, "num_attention_heads") % kv_heads:
            raise DGemmaError(
                f"layer {index} has {kv_heads} key-value heads, "
                f"which does not divide num_attention_heads ({text['num_attention_heads']})"
            )
        window = positive_int(text, "sliding_window") if kind == SLIDING else None
        layers.append(LayerConfig(head_dim, kv_heads, window, _rope(text, kind)))
    return tuple(layers)


def _layer_types(text: dict[str, Any]) -> list[str]:
    count = positive_int(text, "num_hidden_layers")
    if count > MAX_LAYERS:
        raise DGemmaError(f"text_config.num_hidden_layers is {count}, more than {MAX_LAYERS}")
    types = text.get("layer_types")
    if types is None:
        types = [SLIDING if (i + 1) % 6 else FULL for i in range(count)]
    if not isinstance(types, list) or len(types) != count or not set(types) <= {FULL, SLIDING}:
        raise DGemmaError(f"text_config.layer_types must name {count} layers, each {SLIDING!r} or {FULL!r}")
    return [*types[:-1], FULL]  # the reference forces the last layer to full attention


def _layer_overrides(text: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Sizes by layer index that differ from the text config's own."""
    per_layer = text.get("per_layer_config")
    if per_layer is None:
        full = {"head_dim": text.get("global_head_dim", 512)}
        if text.get("num_global_key_value_heads") is not None:
            full["num_key_value_heads"] = text["num_global_key_value_heads"]
        return {i: full for i, kind in enumerate(_layer_types(text)) if kind == FULL}
    overrides = {}
    for key, values in per_layer.items():
        unknown = set(values) - {"head_dim", "num_key_value_heads"}
        if unknown:
            raise DGemmaError(f"text_config.per_layer_config[{key!r}] sets {sorted(unknown)[0]}: not supported")
        overrides[int(key)] = values
    return overrides


def _rope(text: dict[str, Any], kind: str) -> dict[str, Any]:
    rope = (text.get("rope_parameters") or _REFERENCE_ROPE).get(kind)
    where = f"text_config.rope_parameters.{kind}"
    if not isinstance(rope, dict):
        raise DGemmaError(f"{where} is {rope!r}, it must be an object")
    positive_float(rope, "rope_theta", section=f"{where}.")
    if positive_float(rope, "partial_rotary_factor", 1.0, section=f"{where}.") > 1:
        raise DGemmaError(f"{where}.partial_rotary_factor is {rope['partial_rotary_factor']!r}, it must be at most 1")
    rope_type = rope.get("rope_type", "default")
    if rope_type not in ("default", "proportional"):
        raise DGemmaError(f"{where}.rope_type is {rope_type!r}, only 'default' or 'proportional' is supported")
    for name, value in rope.items():
        neutral = {"factor": (1.0, None), "partial_rotary_factor": (1.0, None) if rope_type == "default" else (value,)}
        known = name in ("rope_type", "rope_theta") or value in neutral.get(name, ())
        if not known:
            raise DGemmaError(f"{where}.{name} is {value!r}, which is not supported")
    return {"rope_type": rope_type, **rope}


def published_dialect(text: dict[str, Any]) -> dict[str, Any]:
    """text_config with `global_head_dim` and `num_global_key_value_heads`, the only form that every reader knows."""
    full = [i for i, kind in enumerate(text.get("layer_types") or []) if kind == FULL]
    per_layer = {int(index): sizes for index, sizes in (text.get("per_layer_config") or {}).items()}
    sizes = per_layer.get(full[0], {}) if full else {}
    if set(per_layer) != set(full) or any(per_layer[i] != sizes for i in full) or "head_dim" not in sizes:
        return text
    text = {k: v for k, v in text.items() if k != "per_layer_config"}
    kv_heads = sizes.get("num_key_value_heads", text["num_key_value_heads"])
    return {
        "final_logit_softcapping": 30.0,  # the saved form leaves the class's default out
        **text,
        "global_head_dim": sizes["head_dim"],
        "num_global_key_value_heads": kv_heads,
    }


def quantization_of(content: dict[str, Any]) -> dict[str, Any] | None:
    """MLX's `quantization` dict of a config.json: group_size, bits, mode, and overrides by module path."""
    quantization: dict[str, Any] | None = content.get("quantization")
    if quantization is None and content.get("quantization_config") is not None:
        foreign = content["quantization_config"]
        method = foreign.get("quant_method", "unknown") if isinstance(foreign, dict) else foreign
        raise DGemmaError(
            f"quantization_config is in the {method!r} format; only MLX quantization is read "
            "(an mlx-community repo, or the bf16 original)"
        )
    if quantization is None:
        return None
    _check_format("quantization", quantization)
    for path, own in quantization.items():
        if path not in ("group_size", "bits", "mode") and not isinstance(own, bool):
            _check_format(f"quantization[{path!r}]", own)
    return quantization


def _check_format(where: str, options: Any) -> None:
    if not isinstance(options, dict):
        raise DGemmaError(f"{where} is {options!r}, it must be an object")
    for name in ("group_size", "bits"):
        positive_int(options, name, section=f"{where}.")
    if not isinstance(options.get("mode", "affine"), str):
        raise DGemmaError(f"{where}.mode is {options['mode']!r}, it must be a name")
