"""The tables of docs/performance.md: what a denoising step of the 26B model computes and reads, and its floor by chip.

Pure arithmetic from the published config.json (tests/data).

python -m benchmarks.roofline
"""

from dataclasses import replace
from pathlib import Path

from mlx_dgemma.bench.chips import CHIPS
from mlx_dgemma.bench.roofline import (
    GROUP_SIZE,
    Stage,
    Widths,
    floor_seconds,
    quantized_bits,
    step_stages,
    tokens_per_second,
)
from mlx_dgemma.model.config import ModelConfig

CONFIG = Path(__file__).parent.parent / "tests" / "data" / "config.json"
PREFIXES, SHOWN = (1024, 8192, 32_768), 8192  # tokens
STEPS = 16  # per canvas, for tokens per second
RECIPES = {"4-bit": replace(Widths(), experts=quantized_bits(4, GROUP_SIZE)), "bf16": Widths()}


def columns(config: ModelConfig, widths: Widths) -> dict[int, tuple[Stage, ...]]:
    """Stages by prefix, and a last one that stands for all."""
    steps = {prefix: step_stages(config, widths, prefix) for prefix in PREFIXES}
    return {prefix: (*stages, _sum(stages)) for prefix, stages in steps.items()}


def flops_table(config: ModelConfig) -> str:
    """GFLOP by stage and prefix, and the share of each stage at the prefix that is shown."""
    steps = columns(config, RECIPES["bf16"])
    heads = ["stage", *(f"GFLOP at {_k(prefix)}" for prefix in PREFIXES), f"share at {_k(SHOWN)}"]
    rows = []
    for i, stage in enumerate(steps[SHOWN]):
        share = f"{stage.flops / steps[SHOWN][-1].flops:.0%}"
        rows.append([stage.name, *(f"{stages[i].flops / 1e9:,.0f}" for stages in steps.values()), share])
    return _markdown(heads, rows)


def bytes_table(config: ModelConfig) -> str:
    """GB by stage, recipe and prefix, and the operations for each byte at the prefix that is shown."""
    recipes = {name: columns(config, widths) for name, widths in RECIPES.items()}
    heads = ["stage"]
    for name in recipes:
        heads += [f"GB, {name}, at {_k(prefix)}" for prefix in PREFIXES] + ["FLOP/byte"]
    rows = []
    for i, stage in enumerate(recipes["bf16"][SHOWN]):
        row = [stage.name]
        for steps in recipes.values():
            shown = steps[SHOWN][i]
            row += [f"{stages[i].nbytes / 1e9:.2f}" for stages in steps.values()]
            row.append(f"{shown.flops / shown.nbytes:,.0f}")
        rows.append(row)
    return _markdown(heads, rows)


def chip_table(config: ModelConfig) -> str:
    """Floors in ms per step by chip, recipe and prefix, and the tokens a second at most."""
    heads = ["chip", "GB/s", "TFLOP/s"]
    heads += [f"{name}, {_k(prefix)}" for name in RECIPES for prefix in PREFIXES]
    heads.append(f"tokens/s, 4-bit, {_k(SHOWN)}")
    rows = []
    for chip in CHIPS:
        peak = f"{chip.teraflops:.1f}{' (estimate)' if chip.is_estimate else ''}"
        row = [chip.name, f"{chip.gigabytes_per_second:.0f}", peak]
        for widths in RECIPES.values():
            floors = [floor_seconds(step_stages(config, widths, prefix), chip) for prefix in PREFIXES]
            row += [f"{1000 * floor:,.0f}" for floor in floors]
        floor = floor_seconds(step_stages(config, RECIPES["4-bit"], SHOWN), chip)
        rows.append([*row, f"{tokens_per_second(config.canvas_length, STEPS, floor):.0f}"])
    return _markdown(heads, rows)


def _sum(stages: tuple[Stage, ...]) -> Stage:
    return Stage("**sum**", sum(s.flops for s in stages), sum(s.nbytes for s in stages))


def _k(prefix: int) -> str:
    return f"{prefix // 1024}k"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def main() -> None:
    config = ModelConfig.from_file(CONFIG)
    print(flops_table(config), bytes_table(config), chip_table(config), sep="\n\n")


if __name__ == "__main__":
    main()
