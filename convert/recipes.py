"""Recipes: which number format each module gets. A recipe is a table; the first pattern that matches a path decides.

Precision outside the experts decides how many denoising steps a canvas needs, and the experts are 88 % of the bytes: so
the recipes differ in how far they go beyond the experts.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.errors import DGemmaError

FLOATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# MLX's modes: bits, group sizes (first is the default).
MODES = {
    "affine": ((2, 3, 4, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}


@dataclass(frozen=True)
class Format:
    """A quantized format of `mx.quantize`."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise DGemmaError(f"quantization mode {self.mode!r} is unknown, use one of {', '.join(MODES)}")
        bits, groups = MODES[self.mode]
        if self.bits not in bits:
            raise DGemmaError(f"{self.mode} has no {self.bits}-bit format, use {' or '.join(map(str, bits))}")
        if self.group_size not in groups:
            raise DGemmaError(f"{self.mode} has no group size {self.group_size}, use {' or '.join(map(str, groups))}")

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.mode} g{self.group_size}"

    def as_config(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def fitting(self, width: int) -> "Format | None":
        """This format, or one with a smaller group if the group does not divide `width`; None if none does."""
        for group in sorted(MODES[self.mode][1], reverse=True):
            if group <= self.group_size and width % group == 0:
                return Format(self.bits, group, self.mode)
        return None


KEEP = "what the source has"  # of a quantized source: the packed bytes are copied
CHOSEN = "the format of --q-bits, --q-group-size and --q-mode"
EXPERTS = r".*\.experts\.(gate_up|down)_proj"
ATTENTION = r".*decoder.*\.self_attn\.[qkvo]_proj"
DENSE = r".*decoder.*\.mlp\.(gate|up|down)_proj"
ROUTER = r".*\.router\.proj"
EMBEDDING = r".*\.embed_tokens"
SELF_CONDITIONING = r".*\.self_conditioning\.(gate|up|down)_proj"
PROJECTOR = r".*\.embed_vision\.embedding_projection"
EIGHT, FOUR, THREE = Format(8, 64), Format(4, 64), Format(3, 64)
Rules = tuple[tuple[str, Format | str | None], ...]

RECIPES: dict[str, Rules] = {
    "experts-4bit": ((EXPERTS, CHOSEN),),
    "mlx-community": (
        (f"{EMBEDDING}|{ATTENTION}|{DENSE}|{ROUTER}", EIGHT),
        (f"{EXPERTS}|{SELF_CONDITIONING}|{PROJECTOR}", FOUR),
    ),
    "8bit": ((f"{EMBEDDING}|{ATTENTION}|{DENSE}|{ROUTER}|{EXPERTS}|{SELF_CONDITIONING}", EIGHT),),
    # 14.6 GB of weights, which with cache and workspace stays below 16 GB: bits go where errors hurt most
    "small": (
        (r".*\.experts\.gate_up_proj", THREE),
        (r".*\.experts\.down_proj", FOUR),
        (f"{EMBEDDING}|{ATTENTION}|{DENSE}|{ROUTER}|{SELF_CONDITIONING}", EIGHT),
    ),
    "uniform": ((f"{EMBEDDING}|{ATTENTION}|{DENSE}|{ROUTER}|{EXPERTS}|{SELF_CONDITIONING}", CHOSEN),),
}
DEFAULT = "experts-4bit"
ABOUT = {
    "experts-4bit": "experts at --q-bits (4), all else as it is: the fewest steps",
    "mlx-community": "as the published 4-bit files: experts 4 bits, most else 8",
    "8bit": "everything at 8 bits",
    "small": "experts at 3 and 4 bits, the rest at 8: the smallest",
    "uniform": "everything at --q-bits (4)",
}


def rules_of(recipe: str, chosen: Format | None, overrides: tuple[str, ...] = ()) -> Rules:
    """A recipe's table with the chosen format filled in and the overrides in front."""
    if recipe not in RECIPES:
        raise DGemmaError(f"recipe {recipe!r} is unknown, use one of {', '.join(RECIPES)}")
    rules = RECIPES[recipe]
    if chosen is not None and not any(format == CHOSEN for _, format in rules):
        raise DGemmaError(f"recipe {recipe} fixes its formats; drop the --q options, or use --override")
    filled = tuple((pattern, chosen or FOUR if format == CHOSEN else format) for pattern, format in rules)
    return (*map(parse_override, overrides), *filled)


def parse_override(text: str) -> tuple[str, Format | None]:
    """'REGEX=BITS[:GROUP[:MODE]]'; BITS 16 leaves a module unquantized. The regex may match anywhere in the path."""
    pattern, _, value = text.rpartition("=")
    parts = value.split(":")
    try:
        re.compile(pattern)
        bits = int(parts[0])
        mode = parts[2] if len(parts) > 2 else "affine"
        group = int(parts[1]) if len(parts) > 1 and parts[1] else MODES.get(mode, MODES["affine"])[1][0]
        if not pattern or len(parts) > 3:
            raise ValueError
    except (ValueError, re.error, OverflowError, RecursionError):  # a repetition or a nesting beyond `re`
        raise DGemmaError(f"--override {text!r} is not REGEX=BITS[:GROUP[:MODE]], as in 'embed_tokens=6:64'") from None
    return f".*(?:{pattern}).*", None if bits == 16 else Format(bits, group, mode)


def format_of(path: str, rules: Rules) -> Format | str | None:
    """What a module path gets: a format, KEEP, or None for unquantized."""
    return next((format for pattern, format in rules if re.fullmatch(pattern, path)), None)


def quantization_config(formats: dict[str, Format]) -> dict[str, Any]:
    """The `quantization` dict of config.json: the commonest format, and overrides by path for the others."""
    default = Counter(formats.values()).most_common(1)[0][0]
    others = {path: format.as_config() for path, format in sorted(formats.items()) if format != default}
    return {**default.as_config(), **others}
