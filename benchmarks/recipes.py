"""The table of recipes in docs/converting.md, for the 26B model: bits per weight, size, memory to run, the Mac it fits.

Pure arithmetic (`convert/summary.py`) from the published config.json and tensor table (tests/data).

python -m benchmarks.recipes
"""

import csv
import json
from pathlib import Path

from convert import summary
from convert.plan import Plan, make_plan
from convert.recipes import RECIPES, rules_of
from convert.source import RULES, Source, SourceTensor
from mlx_dgemma.checkpoint.headers import TensorInfo, target_name
from mlx_dgemma.model.config import ModelConfig

DATA = Path(__file__).parent.parent / "tests" / "data"


def published_source() -> Source:
    """The published checkpoint's shapes, without its weights."""
    tensors = {}
    with (DATA / "tensors.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            shape = tuple(int(n) for n in row["shape"].split(","))
            target = target_name(row["name"], RULES)
            tensors[target] = SourceTensor(TensorInfo(row["name"], row["dtype"], shape, DATA, 0, 0), shape)
    return Source(DATA, json.loads((DATA / "config.json").read_text()), tensors, {}, True)


def row(name: str, plan: Plan, config: ModelConfig) -> str:
    memory = summary.memory_to_run(plan, config)
    sizes = f"{plan.nbytes / 1e9:.1f} GB | {memory / 1e9:.1f} GB"
    return f"| `{name}` | {summary.bits_per_weight(plan):.2f} | {sizes} | {summary.smallest_mac(memory)} |"


def main() -> None:
    source, config = published_source(), ModelConfig.from_file(DATA / "config.json")
    print("| recipe | bits per weight | size | memory to run | fits a Mac with |")
    print("|---|---|---|---|---|")
    for name in RECIPES:
        print(row(name, make_plan(source, rules_of(name, None)), config))
    print(row("(none)", make_plan(source, ()), config))


if __name__ == "__main__":
    main()
