"""The vision tower side by side with mlx-vlm's: time and transient memory, on the same random weights.

    pip install mlx-vlm && python -m benchmarks.eyes

The published tower's sizes, float32, one image that fills its budget of tokens as a square can; ours and theirs in
turn, and the median ratio of the pairs. Transient memory is what an image needs beyond the weights. What both make of
the image is compared before: they agree but for rounding.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_dgemma.bench.images import image_grid
from mlx_dgemma.model import memory
from mlx_dgemma.model.vision import VisionTower
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.terminal.cli import Parser, exit_code, require

PUBLISHED = {
    "model_type": "gemma4_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72, "patch_size": 16, "pooling_kernel_size": 3,
    "position_embedding_size": 10240, "rms_norm_eps": 1e-6, "standardize": True, "use_clipped_linears": False,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "default_output_length": 280,
}  # fmt: skip
TOKENS = {"image_token_id": 258880, "boi_token_id": 255999, "eoi_token_id": 258882}
Grid = tuple[int, int]
See = Callable[[mx.array, Grid], mx.array]


def weights(tower: VisionTower) -> dict[str, mx.array]:
    """Random ones by our names, with spreads that keep activations near 1."""
    made = {}
    for i, (name, own) in enumerate(tree_flatten(tower.parameters())):
        noise = mx.random.normal(own.shape, key=mx.random.key(i))
        made[name] = 1 + 0.1 * noise if own.ndim == 1 else noise * own.shape[-1] ** -0.5
    return made


def ours(vision: dict[str, Any], tower: VisionTower, known: dict[str, mx.array]) -> See:
    tower.load_weights(list(known.items()))
    for layer in tower.encoder.layers:
        layer.self_attn.fuse()
        layer.mlp.fuse()
    mx.eval(tower.parameters())

    def see(patches: mx.array, grid: Grid) -> mx.array:
        features = tower(patches, grid)
        memory.finish([features])  # as a prompt's images are evaluated
        return features

    return see


def theirs(vision: dict[str, Any], known: dict[str, mx.array]) -> See:
    """mlx-vlm's tower; it takes an image as (1, colours, height, width)."""
    from mlx_vlm.models.gemma4.config import VisionConfig as Theirs
    from mlx_vlm.models.gemma4.vision import VisionModel

    tower = VisionModel(Theirs.from_dict(vision))
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = {name: name for name in known}
    for name in known:
        for linear in linears:
            names[name] = names[name].replace(f"{linear}.weight", f"{linear}.linear.weight")
    tower.load_weights([(names[name], own) for name, own in known.items()])
    mx.eval(tower.parameters())
    side = vision["patch_size"]

    def see(patches: mx.array, grid: Grid) -> mx.array:
        image = patches.reshape(*grid, side, side, 3).transpose(4, 0, 2, 1, 3)
        return tower(image.reshape(1, 3, grid[0] * side, grid[1] * side))[0]

    return see


def seconds(see: See, patches: mx.array, grid: Grid) -> float:
    began = time.perf_counter()
    mx.eval(see(patches, grid))
    return time.perf_counter() - began


def transient(see: See, patches: mx.array, grid: Grid) -> int:
    """Bytes that an image needs beyond what is alive before it."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds(see, patches, grid)
    return mx.get_peak_memory() - before


def compare(sides: tuple[See, See], tokens: int, repeat: int) -> None:
    """Prints a row for each figure."""
    grid = image_grid(tokens, PUBLISHED["pooling_kernel_size"])
    patches = mx.random.uniform(shape=(grid[0] * grid[1], 3 * PUBLISHED["patch_size"] ** 2), key=mx.random.key(0))
    one, two = (np.array(side(patches, grid)) for side in sides)
    assert one.shape == two.shape and np.abs(one - two).max() < 1e-3 * np.abs(two).max(), "the towers disagree"
    peaks = [transient(side, patches, grid) for side in sides]
    pairs = [[seconds(side, patches, grid) for side in sides] for _ in range(repeat)]
    times = [statistics.median(pair[i] for pair in pairs) for i in (0, 1)]
    row(tokens, "tower, ms", [1e3 * t for t in times], statistics.median(a / b for a, b in pairs))
    row(tokens, "transient memory, MB", [peak / 1e6 for peak in peaks], peaks[0] / peaks[1])


def row(tokens: int, name: str, values: list[float], ratio: float) -> None:
    print(f"| {tokens} | {name} | {values[0]:.0f} | {values[1]:.0f} | {ratio:.2f} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.eyes", description=__doc__.splitlines()[0])
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[280], help="of an image (default: 280)")
    parser.add_argument("--layers", type=int, default=27, help="of the tower (default: 27, as published)")
    parser.add_argument("--repeat", type=int, default=3, help="images of each side (default: 3)")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args), "interrupted")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    require("mlx-vlm")
    vision = {**PUBLISHED, "num_hidden_layers": args.layers}
    config = VisionConfig.from_dict({"vision_config": vision, **TOKENS})
    assert config is not None  # it has one
    tower = VisionTower(config)
    known = weights(tower)
    print("| tokens | figure | mlx-dgemma | mlx-vlm | ratio |\n|---|---|---|---|---|", flush=True)
    sides = theirs(vision, known), ours(vision, tower, known)
    for tokens in args.image_tokens:
        compare(sides[::-1], tokens, args.repeat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
