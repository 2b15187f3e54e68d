"""The published shapes in small: heads, key-value heads, and numbers of groups that no two ranks share evenly."""

from pathlib import Path

from convert.__main__ import main as convert
from tests.conftest import random_reference

GROUP = 32
SHAPES = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "intermediate_size": 33 * GROUP,
    "moe_intermediate_size": 11 * GROUP,
}
FORMATS = {
    "floats": None,
    "8 bits": ["--recipe", "uniform", "--q-bits", "8", "--q-group-size", str(GROUP)],
    "4 bits, attention 8": ["--recipe", "experts-4bit", "--q-group-size", str(GROUP), "--override", "self_attn=8:32"],
    "mxfp4": ["--recipe", "uniform", "--q-mode", "mxfp4"],
}


def write_published(folder: Path) -> dict[str, Path]:
    """A checkpoint in each format, by its name."""
    floats = folder / "floats"
    random_reference(**SHAPES).save_pretrained(floats)
    written = {"floats": floats}
    for name, arguments in FORMATS.items():
        if arguments is not None:
            written[name] = folder / name.replace(", ", "-").replace(" ", "-")
            assert convert(["--hf-path", str(floats), "--mlx-path", str(written[name]), *arguments]) == 0
    return written
