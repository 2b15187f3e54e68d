"""Command line: how fast a checkpoint runs on this machine, stage by stage, and how far that is from the possible.

Table on stdout, errors on stderr; exit 0, 1 (failed), 2 (bad usage).
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlx_dgemma.cli import Parser, exit_code

if TYPE_CHECKING:
    from mlx_dgemma.measure import Report

MIN_STEPS = 3  # the first and the last step of a canvas do less than the others, and do not count


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dgemma-bench",
        description="Measure prefill, a denoising step by stage, and memory, with random tokens.",
        epilog="A real text needs its own number of steps: dgemma-generate tells it.",
    )
    add = parser.add_argument
    add("--model", metavar="M", help="checkpoint folder or hub repository (default: the embedded checkpoint)")
    add("--prompt-length", type=int, default=128, metavar="N", help="random tokens in the prefix (default: 128)")
    add("--steps", type=int, default=8, metavar="N", help=f"denoising steps per canvas, from {MIN_STEPS} (default: 8)")
    add("--repeat", type=int, default=3, metavar="N", help="measurements, after one that does not count (default: 3)")
    add("--seed", type=int, default=0, help="of prompt and noise (default: 0)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name, lowest in (("prompt_length", 1), ("steps", MIN_STEPS), ("repeat", 1), ("seed", 0)):
        value = vars(args)[name]
        if not lowest <= value < 2**31:
            parser.error(f"--{name.replace('_', '-')} must be between {lowest} and 2^31 - 1, got {value}")
    return exit_code(lambda: run(args), "interrupted")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from mlx_dgemma.measure import Options, run_benchmark  # late, so that --help answers at once

    report = run_benchmark(Options(args.model, args.prompt_length, args.steps, args.repeat, args.seed))
    print(json.dumps(asdict(report)) if args.json else table(report))
    return 0


def table(report: "Report") -> str:
    """The report as text, a figure a line."""
    r, rate = report, f"{report.prefill_tokens_per_second:,.1f} tokens/s"
    rows = (
        ("model", f"{r.model}, {r.dtype}, {r.device}"),
        ("prefill", f"{r.prompt_length} tokens in {r.prefill_seconds:.3f} s, {rate}"),
        ("step", f"{r.step_ms:.2f} ms (median; canvas of {r.canvas_length} tokens)"),
        ("  layers", f"{r.layers_ms:.2f} ms"),
        ("  vocabulary", f"{r.vocabulary_ms:.2f} ms"),
        ("  sampler, rest", f"{r.rest_ms:.2f} ms (below 0: the stages take longer alone than in the loop)"),
        ("speed", f"{r.tokens_per_second:,.1f} tokens/s at {r.steps} steps per canvas; real text needs its own number"),
        ("memory", f"{r.peak_bytes / 1e9:.3f} GB at most: weights {r.weight_bytes / 1e9:.3f}, "
                   f"prefix {r.cache_bytes / 1e9:.3f}; denoising beyond those {r.transient_bytes / 1e9:.3f}"),
        ("machine", f"{r.gigabytes_per_second:.1f} GB/s, {r.gigaflops:,.0f} GFLOP/s in {r.dtype} (measured)"),
        ("floor", f"{r.floor_ms:.3g} ms per step on this machine: the loop runs at {r.percent_of_floor:.1f} % of it"),
    )  # fmt: skip
    return "\n".join(f"{name:<16}{text}" for name, text in rows)


if __name__ == "__main__":
    sys.exit(main())
