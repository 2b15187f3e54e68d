"""Requests an hour by chip, predicted: what one Mac answers, one text after another or several at a time.

    python -m benchmarks.scaling [--prompt 1000] [--share 1 0.36]

PREDICTIONS, not measurements: the published model at 4 bits, denoising steps by kind of text as recorded for it
(`mlx_dgemma.bench.predictions`), the time of a step at the share of its floor that runners reach. A share is of the
reference's work per token; 0.36 is what `--fast` takes on the embedded checkpoint's hard tasks (docs/experiments.md).
Texts that share a step each cost their own arithmetic, so several at a time do not raise the sum.
"""

import argparse
import sys

from benchmarks.distributed import PUBLISHED, WIDTHS
from mlx_dgemma.bench.chips import CHIPS, Chip
from mlx_dgemma.bench.predictions import OF_PEAK, REFERENCE_CANVAS, reference_work
from mlx_dgemma.bench.roofline import floor_seconds, step_stages
from mlx_dgemma.diffusion.work import COMMIT
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.terminal.cli import Parser, exit_code

LENGTHS = {"chat": 300, "code": 600, "prose": 800}  # tokens of an answer


def requests_an_hour(config: ModelConfig, chip: Chip, kind: str, prompt: int, share: float) -> float:
    """Of answers of this kind behind prompts of so many new tokens, at a share of the reference's work per token."""
    full = floor_seconds(step_stages(config, WIDTHS, prompt), chip) / OF_PEAK
    steps = LENGTHS[kind] * reference_work(kind) * share + prompt / REFERENCE_CANVAS * COMMIT
    return 3600 / (full * steps)


def table(config: ModelConfig, prompt: int, shares: list[float]) -> str:
    heads = [f"{kind}, {length} tokens, at {share:g}" for kind, length in LENGTHS.items() for share in shares]
    lines = [f"| chip | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for chip in CHIPS:
        found = [requests_an_hour(config, chip, kind, prompt, share) for kind in LENGTHS for share in shares]
        lines.append(f"| {chip.name} | {' | '.join(f'{own:,.0f}' for own in found)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.scaling", description="Predict requests an hour by chip.")
    add = parser.add_argument
    add("--prompt", type=int, default=1000, metavar="N", help="new tokens of a prompt (default: 1000)")
    about = "of the reference's work per token (default: 1 0.36)"
    add("--share", type=float, nargs="+", default=[1.0, 0.36], metavar="X", help=about)
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args), "interrupted")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    print(f"PREDICTIONS, not measured: requests an hour behind prompts of {args.prompt} new tokens\n")
    print(table(ModelConfig.from_dict(PUBLISHED), args.prompt, args.share))
    return 0


if __name__ == "__main__":
    sys.exit(main())
