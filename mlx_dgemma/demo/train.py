"""Command line: trains the embedded checkpoint; exit 0, 1 (failed), 2 (bad usage). Needs torch and transformers.

python -m mlx_dgemma.demo.train --output checkpoint --steps 6000
"""

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import sys
from pathlib import Path

from mlx_dgemma.tasks import TASKS
from mlx_dgemma.terminal.cli import Parser, exit_code, require


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m mlx_dgemma.demo.train", description="Train the embedded checkpoint.")
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="D", help="folder to save into")
    add("--steps", type=int, default=6000, metavar="N", help="batches (default: 6000)")
    add("--minutes", type=float, metavar="M", help="end after so long instead of after --steps")
    add("--batch-size", type=int, default=64, metavar="N", help="canvases in a batch (default: 64)")
    add("--save-every", type=float, default=15, metavar="M", help="minutes between two saves (default: 15)")
    add("--seed", type=int, default=0, metavar="N", help="of data, corruption and weights (default: 0)")
    add("--start", type=Path, metavar="D", help="go on from this checkpoint")
    add("--rate", type=float, default=1.0, metavar="FACTOR", help="on both learning rates (default: 1)")
    add("--focus", nargs="+", type=_factor, default=(), metavar="TASK=X", help="factors on the shares of tasks")
    add("--copies", type=float, default=0.0, metavar="SHARE", help="of batches: pieces of random text (default: 0)")
    add("--workers", type=int, default=1, metavar="N", help="processes that share the steps, each a batch (default: 1)")
    return parser


def _factor(text: str) -> tuple[str, float]:
    """ "latin=0.5" as name and factor."""
    name, _, factor = text.partition("=")
    if name not in TASKS:
        raise argparse.ArgumentTypeError(f"no task {name!r}; there are {', '.join(TASKS)}")
    return name, float(factor)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    told = "interrupted; what was saved last is in --output"
    return exit_code(lambda: run(build_parser().parse_args(argv)), told, ends_process=argv is None)


def run(args: argparse.Namespace) -> int:
    """Trains."""
    require("torch", "transformers")
    from mlx_dgemma.demo.training import Plan, train

    train(Plan(**vars(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
