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
    Stage,
    Widths,
    floor_seconds,
    quantized_bits,
    step_stages,
    tokens_per_second,
)

CONFIG = Path(__file__).parent.parent / "tests" / "data" / "config.json"
PREFIXES, SHOWN = (1024, 8192, 32_768), 8192  # tokens
STEPS = 16  # per canvas, for tokens per second
FOUR_BITS, BF16 = replace(Widths(), experts=quantized_bits(4, GROUP_SIZE)), Widths()


def with_sum(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages, and a last one that stands for all."""
    return (*stages, Stage("**sum**", sum(s.flops for s in stages), sum(s.nbytes for s in stages)))


def stage_table(config: ModelConfig) -> str:
    """GFLOP by stage and prefix, and GB of both recipes with their shares, at the prefix that is shown."""
    flops = [with_sum(step_stages(config, BF16, prefix)) for prefix in PREFIXES]
    four, bf16 = (with_sum(step_stages(config, widths, SHOWN)) for widths in (FOUR_BITS, BF16))
    shown, k = flops[PREFIXES.index(SHOWN)], f"{SHOWN // 1024}k"
    heads = [f"GFLOP at {n // 1024}k" for n in PREFIXES]
    heads = ["stage", *heads, f"share at {k}", f"GB at {k}, 4-bit experts", "share", f"GB at {k}, bf16", "share"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for i, stage in enumerate(shown):
        cells = [stage.name, *(f"{column[i].flops / 1e9:,.0f}" for column in flops)]
        cells.append(f"{stage.flops / shown[-1].flops:.0%}")
        for column in (four, bf16):
            cells += [f"{column[i].nbytes / 1e9:.2f}", f"{column[i].nbytes / column[-1].nbytes:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def chip_table(config: ModelConfig) -> str:
    """Floors in ms per step by chip, recipe and prefix, and the tokens a second at most."""
    heads = ["chip", "GB/s", "float16 TFLOP/s"]
    heads += [f"{name} {n // 1024}k" for name in ("4-bit", "bf16") for n in PREFIXES]
    heads.append(f"tokens/s, 4-bit {SHOWN // 1024}k, {STEPS} steps")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for chip in CHIPS:
        peak = f"{chip.teraflops:.1f}{' (estimate)' if chip.is_estimate else ''}"
        cells = [chip.name, f"{chip.gigabytes_per_second:.0f}", peak]
        for widths in (FOUR_BITS, BF16):
            floors = [floor_seconds(step_stages(config, widths, prefix), chip) for prefix in PREFIXES]
            cells += [f"{1000 * floor:,.0f}" for floor in floors]
        floor = floor_seconds(step_stages(config, FOUR_BITS, SHOWN), chip)
        cells.append(f"{tokens_per_second(config.canvas_length, STEPS, floor):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    config = ModelConfig.from_file(CONFIG)
    print(stage_table(config), chip_table(config), sep="\n\n")


if __name__ == "__main__":
    main()
