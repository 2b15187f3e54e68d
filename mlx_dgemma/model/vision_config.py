"""Configuration of the vision tower: `vision_config` and the image tokens of a checkpoint's config.json.

The class defaults of transformers describe another tower than the published one, so sizes are never assumed. A value
that would change the result and is not supported is refused by name.
"""

from dataclasses import dataclass
from typing import Any

from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.model.config import MAX_LAYERS
from mlx_dgemma.model.fields import positive_float, positive_int, refuse_unsupported

SOFT_TOKENS = 280  # of an image, at most, where the checkpoint does not say
_SECTION = "vision_config."
_ONLY_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gemma4_vision",),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False, None),
    "use_clipped_linears": (False, None),
}
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim", "patch_size",
    "pooling_kernel_size", "position_embedding_size",
)  # fmt: skip
_TOKENS = ("image_token_id", "boi_token_id", "eoi_token_id")


@dataclass(frozen=True)
class VisionConfig:
    """Everything the vision tower needs, and how an image stands in a prompt.

    Attributes:
        patch_size: pixels along a side of a patch.
        pooling_kernel_size: patches along a side of what becomes one soft token.
        position_embedding_size: patches along a side of an image, at most.
        standardize: whether soft tokens get the checkpoint's bias and scale.
        image_token_id: stands in ids for each soft token of an image.
        boi_token_id: before the first of them.
        eoi_token_id: behind the last.
        soft_tokens: of an image, at most, unless the user says otherwise.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    patch_size: int
    pooling_kernel_size: int
    position_embedding_size: int
    rms_norm_eps: float
    rope_theta: float
    standardize: bool
    image_token_id: int
    boi_token_id: int
    eoi_token_id: int
    soft_tokens: int

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "VisionConfig | None":
        """Reads the content of a config.json; None if it has no `vision_config`.

        Raises:
            DGemmaError: a field that is missing, malformed, or has a value that this package does not compute.
        """
        vision = content.get("vision_config")
        if vision is None:
            return None
        if not isinstance(vision, dict):
            raise DGemmaError(f"vision_config is {vision!r}, it must be an object")
        try:
            return cls._from_dict(content, vision)
        except DGemmaError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise DGemmaError(f"vision_config is malformed ({first_line(error)}); download it again") from None

    @classmethod
    def _from_dict(cls, content: dict[str, Any], vision: dict[str, Any]) -> "VisionConfig":
        refuse_unsupported(vision, _ONLY_SUPPORTED, _SECTION)
        sizes = {name: positive_int(vision, name, section=_SECTION) for name in _SIZES}
        heads = sizes["num_attention_heads"]
        refuse_unsupported(vision, {"num_key_value_heads": (heads, None)}, _SECTION)
        if sizes["num_hidden_layers"] > MAX_LAYERS:
            raise DGemmaError(f"{_SECTION}num_hidden_layers is {sizes['num_hidden_layers']}, more than {MAX_LAYERS}")
        if sizes["head_dim"] % 4:
            raise DGemmaError(f"{_SECTION}head_dim is {sizes['head_dim']}, two directions need a multiple of 4")
        standardize = vision.get("standardize")
        if type(standardize) is not bool:
            raise DGemmaError(f"{_SECTION}standardize is {standardize!r}, it must be true or false")
        return cls(
            **sizes,
            rms_norm_eps=positive_float(vision, "rms_norm_eps", 1e-6, section=_SECTION),
            rope_theta=_rope_theta(vision.get("rope_parameters")),
            standardize=standardize,
            **{name: _token(content, name) for name in _TOKENS},
            soft_tokens=positive_int(content, "vision_soft_tokens_per_image", SOFT_TOKENS, section=""),
        )

    @property
    def patch_values(self) -> int:
        """Numbers in a patch: rows × columns × colours."""
        return 3 * self.patch_size**2

    def has_tokens(self, vocab_size: int) -> bool:
        """Whether a vocabulary of this size has the tokens that an image stands for in a prompt."""
        return max(self.image_token_id, self.boi_token_id, self.eoi_token_id) < vocab_size


def _rope_theta(rope: Any) -> float:
    """Base of the rotary embedding; "default", as published, and "axial", as transformers saves it, are one thing."""
    where = f"{_SECTION}rope_parameters."
    if rope is None:
        return 100.0
    if not isinstance(rope, dict):
        raise DGemmaError(f"{where[:-1]} is {rope!r}, it must be an object")
    refuse_unsupported(rope, {"rope_type": ("default", "axial")}, where)
    others = sorted(name for name in rope if name not in ("rope_type", "rope_theta") and rope[name] is not None)
    if others:
        raise DGemmaError(f"{where}{others[0]} is {rope[others[0]]!r}, which is not supported")
    return positive_float(rope, "rope_theta", section=where)


def _token(content: dict[str, Any], name: str) -> int:
    value = content.get(name)
    if type(value) is not int or value < 0:
        raise DGemmaError(f"{name} is {value!r}, it must be a token id")
    return value
