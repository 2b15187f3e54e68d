"""The table of recipes in docs/converting.md, for the 26B model: bits per weight, size, memory to run, the Mac it fits.

Pure arithmetic from the published config.json and tensor table (tests/data). Memory to run is the text weights (vision
weights are not loaded yet), the prefix cache at 8,192 tokens in bfloat16, and a workspace for one denoising step.

python -m benchmarks.recipes
"""

import csv
import json
from pathlib import Path

from convert.plan import Plan, make_plan
from convert.recipes import RECIPES, rules_of
from convert.source import RULES, Source, SourceTensor
from mlx_dgemma.checkpoint.headers import TensorInfo, target_name
from mlx_dgemma.model.config import ModelConfig

DATA = Path(__file__).parent.parent / "tests" / "data"
PREFIX = 8192  # tokens
WORKSPACE = 300_000_000  # bytes: a block of the vocabulary stage, attention scores at this prefix, activations
GPU_SHARE = 0.75  # of a Mac's memory that its GPU may take, by default
MACS = (16, 24, 32, 36, 48, 64, 96, 128)  # GB


def published_source() -> Source:
    """The published checkpoint's shapes, without its weights."""
    tensors = {}
    with (DATA / "tensors.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            shape = tuple(int(n) for n in row["shape"].split(","))
            target = target_name(row["name"], RULES)
            tensors[target] = SourceTensor(TensorInfo(row["name"], row["dtype"], shape, DATA, 0, 0), shape)
    return Source(DATA, json.loads((DATA / "config.json").read_text()), tensors, {}, True)


def cache_bytes(config: ModelConfig, tokens: int) -> int:
    """Keys and values of a prefix, bfloat16."""
    kept = [min(tokens, layer.window - 1 if layer.window else tokens) for layer in config.layers]
    return sum(2 * 2 * n * c.num_key_value_heads * c.head_dim for n, c in zip(kept, config.layers, strict=True))


def row(name: str, plan: Plan, config: ModelConfig) -> str:
    parts = plan.by_part()
    weights = sum(elements for elements, _ in parts.values())
    text = plan.nbytes - parts["vision"][1]
    memory = text + cache_bytes(config, PREFIX) + WORKSPACE
    mac = next((f"{size} GB" for size in MACS if GPU_SHARE * size * 1e9 >= memory), "none")
    bits = 8 * plan.nbytes / weights
    return f"| `{name}` | {bits:.2f} | {plan.nbytes / 1e9:.1f} GB | {memory / 1e9:.1f} GB | {mac} |"


def main() -> None:
    source, config = published_source(), ModelConfig.from_file(DATA / "config.json")
    print("| recipe | bits per weight | size | memory to run | fits a Mac with |")
    print("|---|---|---|---|---|")
    for name in RECIPES:
        print(row(name, make_plan(source, rules_of(name, None)), config))
    print(row("(none)", make_plan(source, ()), config))


if __name__ == "__main__":
    main()
