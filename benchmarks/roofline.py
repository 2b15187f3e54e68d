"""The tables of docs/performance.md: what a denoising step of the 26B model computes and reads, and its floor by chip.

Pure arithmetic from the published config.json (tests/data).

python -m benchmarks.roofline
"""

from dataclasses import replace
from pathlib import Path

from mlx_dgemma.chips import CHIPS
from mlx_dgemma.config import ModelConfig
from mlx_dgemma.roofline import (
    GROUP_SIZE,
    Widths,
    chip_table,
    floor_seconds,
    quantized_bits,
    stage_table,
    step_stages,
)

CONFIG = Path(__file__).parent.parent / "tests" / "data" / "config.json"
PREFIXES, SHOWN = (1024, 8192, 32_768), 8192  # tokens
STEPS = 16  # per canvas, for tokens per second
RECIPES = {
    "4-bit experts, the rest bf16": replace(Widths(), experts=quantized_bits(4, GROUP_SIZE)),
    "bf16": Widths(),
}


def prefix_table(config: ModelConfig, widths: Widths) -> str:
    """Floors in ms per step, a column per prefix."""
    heads = [f"{n // 1024}k" for n in PREFIXES]
    lines = [f"| chip | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for chip in CHIPS:
        floors = [1000 * floor_seconds(step_stages(config, widths, prefix), chip) for prefix in PREFIXES]
        lines.append(f"| {chip.name} | {' | '.join(f'{floor:,.0f}' for floor in floors)} |")
    return "\n".join(lines)


def main() -> None:
    config = ModelConfig.from_file(CONFIG)
    for name, widths in RECIPES.items():
        stages = step_stages(config, widths, SHOWN)
        print(f"### {name}\n\nOne step at a prefix of {SHOWN:,} tokens:\n\n{stage_table(stages)}\n")
        print(f"Floor on each chip, same prefix:\n\n{chip_table(stages, config.canvas_length, STEPS)}\n")
        print(f"Floor in ms per step, by prefix:\n\n{prefix_table(config, widths)}\n")


if __name__ == "__main__":
    main()
