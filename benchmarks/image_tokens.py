"""The tables of docs/images.md: tokens of an image by its size and budget, and what the 26B model spends on them.

Pure arithmetic, from the size rule and the published config.json (tests/data). Seconds are operations at SHARE of a
chip's peak, which nobody has measured for the tower.

python -m benchmarks.image_tokens
"""

import math

from mlx_dgemma.bench.chips import CHIPS
from mlx_dgemma.bench.images import image_cost
from mlx_dgemma.bench.roofline import Widths
from mlx_dgemma.checkpoint.headers import VISION
from mlx_dgemma.model.config import ModelConfig, read_config
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.text.images import BUDGETS, target_size

from .recipes import DATA, published_source

SIZES = {
    "a square": (1024, 1024),
    "a screen, 1920 × 1080": (1920, 1080),
    "a photo, 4032 × 3024": (4032, 3024),
    "a page, 1240 × 1754": (1240, 1754),
    "a banner, 3000 × 32": (3000, 32),
}
SHOWN, SHARE = ("M3 Pro", "M1 Max", "M4 Max", "M3 Ultra"), 0.7


def tokens(width: int, height: int, budget: int) -> str:
    """How many an image becomes, and at which size it is seen."""
    h, w = target_size(height, width, budget)
    return f"{h * w // 48**2} ({w} × {h})"


def sizes_table() -> str:
    """Tokens by size and budget."""
    lines = [f"| image | {' | '.join(map(str, BUDGETS))} |", f"|---|{'---|' * len(BUDGETS)}"]
    for name, size in SIZES.items():
        lines.append(f"| {name} | {' | '.join(tokens(*size, budget) for budget in BUDGETS)} |")
    return "\n".join(lines)


def kept_bytes(config: ModelConfig, count: int) -> int:
    """Keys and values of so many tokens in bfloat16, at most: sliding layers keep a window of them."""
    layers = ((2 * layer.num_key_value_heads * layer.head_dim, layer.window or count) for layer in config.layers)
    return sum(2 * width * min(count, window) for width, window in layers)


def cost_table(config: ModelConfig, vision: VisionConfig) -> str:
    """Operations of an image that fills its budget, seconds by chip, and bytes that are kept."""
    chips = [chip for name in SHOWN for chip in CHIPS if chip.name == name]
    heads = ["tokens", "TFLOP", *(f"{chip.name}, s" for chip in chips), "keys and values, MB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for budget in BUDGETS:
        cost = image_cost(config, vision, Widths(), budget)
        flops = cost.tower + cost.prefill
        seconds = (f"{flops / (SHARE * chip.teraflops):.2f}" for chip in chips)
        kept = kept_bytes(config, budget) / 1e6
        lines.append(f"| {budget} | {flops:.1f} | {' | '.join(seconds)} | {kept:.0f} |")
    return "\n".join(lines)


def tower_gigabytes() -> float:
    """Of tower and projector in float32, 1e9 bytes."""
    held = (own.shape for target, own in published_source().tensors.items() if VISION.fullmatch(target))
    return 4 * sum(map(math.prod, held)) / 1e9


def main() -> None:
    file = DATA / "config.json"
    config, vision = ModelConfig.from_file(file), VisionConfig.from_dict(read_config(file))
    assert vision is not None
    print(sizes_table(), cost_table(config, vision), f"tower: {tower_gigabytes():.2f} GB in float32", sep="\n\n")


if __name__ == "__main__":
    main()
