"""Command line: how fast a checkpoint runs on this machine, stage by stage, and how far that is from the possible.

Table on stdout, errors on stderr; exit 0, 1 (failed), 2 (bad usage).
"""

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.terminal.cli import Parser, exit_code
from mlx_dgemma.terminal.options import add_distributed, add_model, plan_of

if TYPE_CHECKING:
    from mlx_dgemma.bench.images import ImageReport
    from mlx_dgemma.bench.measure import Report
    from mlx_dgemma.bench.rows import ActiveRows

MAX_TOKENS = 1120  # of an image: the largest budget
MIN_STEPS = 3  # the first and the last step of a canvas do less than the others, and do not count


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dgemma-bench",
        description="Measure prefill, a denoising step by stage, and memory, with random tokens.",
        epilog="A real text needs its own number of steps: dgemma-generate tells it.",
    )
    add = parser.add_argument
    add_model(parser)
    add("--prompt-length", type=int, default=128, metavar="N", help="random tokens in the prefix (default: 128)")
    add(
        "--steps",
        type=int,
        default=8,
        metavar="N",
        help=f"denoising steps per canvas, at least {MIN_STEPS} (default: 8)",
    )
    add(
        "--repeat",
        type=int,
        default=3,
        metavar="N",
        help="canvases measured, after one that does not count (default: 3)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of prompt and noise (default: 0)")
    about = "also measure an image of at most N tokens: tower and prefill"
    add("--image-tokens", type=int, metavar="N", help=about)
    about = "measure nothing: is the checkpoint sound, and computed rightly? exit code 1 if not"
    add("--check", action="store_true", help=about)
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add_distributed(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return exit_code(lambda: run(parse(argv)), "interrupted", ends_process=argv is None)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name, lowest in (("prompt_length", 1), ("steps", MIN_STEPS), ("repeat", 1), ("seed", 0)):
        value, option = vars(args)[name], f"--{name.replace('_', '-')}"
        if value < lowest:
            parser.error(f"{option} must be at least {lowest}, got {value}")
        if value >= 2**31:
            parser.error(f"{option} must be below 2^31, got {value}")
    if args.image_tokens is not None and not 1 <= args.image_tokens <= MAX_TOKENS:
        parser.error(f"--image-tokens must be from 1 to {MAX_TOKENS}, got {args.image_tokens}")
    args.plan = plan_of(parser, args)
    if args.check and args.plan is not None:
        parser.error("--check does not go with --distributed; leave one out")
    return args


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    if args.check:
        return run_check(args)
    with signals.uninterrupted():  # late, so that --help answers at once
        from mlx_dgemma.bench.measure import Options, run_benchmark
        from mlx_dgemma.distributed.session import only_first, together

    measured = args.prompt_length, args.steps, args.repeat, args.seed
    asked = Options(args.model, *measured, args.dtype, args.wire, args.image_tokens)
    if args.plan is None:
        _print(run_benchmark(asked), args)
        return 0
    with together(args.plan) as session, only_first(session):
        _print(run_benchmark(asked, session), args)
    return 0


def _print(report: "Report", args: argparse.Namespace) -> None:
    print(json.dumps(asdict(report)) if args.json else table(report))


def run_check(args: argparse.Namespace) -> int:
    """Shows a finished canvas to the model once more; the exit code."""
    from mlx_dgemma.terminal.start import load_engine

    engine = load_engine(args.model, args.dtype, wire=args.wire)
    from mlx_dgemma.bench.check import check

    found = check(engine, args.seed)
    if args.json:
        print(json.dumps({"model": engine.checkpoint, **asdict(found), "is_sound": found.is_sound}))
    else:
        print(f"{found.kept} of {found.tokens} tokens of a canvas stay after one more step (it took {found.steps})")
    if found.is_sound:
        return 0
    raise DGemmaError(
        "the checkpoint is damaged or computed wrongly here: a sound one keeps nine of ten; download or convert it "
        "again, then try --dtype bfloat16 and another version of MLX"
    )


def table(report: "Report") -> str:
    """The report as text that fits 80 columns, a figure a line."""
    r = report
    alone = "" if r.rest_ms >= 0 else "the stages take longer alone than in the loop"
    prompt = f"{r.prompt_length} tokens, {r.prefill_tokens_per_second:,.1f} tokens/s"
    canvas = f"at {r.steps} steps per canvas of {r.canvas_length} tokens"
    machine = f"{r.gigabytes_per_second:,.1f} GB/s, {r.gigaflops:,.0f} GFLOP/s"
    rows = (
        ("model", r.model),
        ("runs on", f"{r.device} in {r.dtype}; measured: {machine}"),
        *((name, value) for name, value in r.environment.items()),
        ("prefill", _ms(1000 * r.prefill_seconds), prompt),
        *((("ranks", r.ranks.line()),) if r.ranks is not None else ()),
        *_image(r.image),
        ("step", _ms(r.step_ms), f"{_floor(r.floor_ms)}, {r.percent_of_floor:.1f} % of the time taken"),
        ("  layers", _ms(r.layers_ms), _floor(r.layers_floor_ms)),
        ("  vocabulary", _ms(r.vocabulary_ms), _floor(r.vocabulary_floor_ms)),
        ("  rest", _ms(r.rest_ms), alone),
        ("speed", f"{r.tokens_per_second:9,.1f} tokens/s", canvas),
        ("peak memory", _size(r.peak_bytes)),
        ("  weights", _size(r.weight_bytes)),
        ("  prefix", _size(r.cache_bytes)),
        ("  transient", _size(r.transient_bytes), "while denoising, beyond these two"),
    )  # fmt: skip
    lines = [f"{name:<14}{'  '.join(cells)}".rstrip() for name, *cells in rows]
    return "\n".join([*lines, "active rows", *(_active(own) for own in r.active_rows)])


def _image(own: "ImageReport | None") -> list[tuple[str, ...]]:
    """The lines about an image."""
    if own is None:
        return []
    seen = f"{own.tokens} tokens of {own.patches} patches, {own.tower_gigaflops:,.0f} GFLOP/s"
    return [
        ("image", _ms(own.tower_ms), seen),
        ("  transient", _size(own.tower_transient_bytes), "while the tower sees it"),
        ("  prefill", _ms(own.prefill_ms)),
    ]


def _active(own: "ActiveRows") -> str:
    """A line of those about fewer active rows."""
    ratios = f"{own.step_ratio:.2f} of the step, {own.row_ratio:.2f} of the rows; floor {own.floor_ratio:.2f}"
    return f"  {own.rows:<12}{_ms(own.step_ms)}  {ratios}"


def _floor(milliseconds: float) -> str:
    return f"floor {milliseconds:,.2f} ms"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:9,.2f} ms"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:9,.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:9,.2f} MB"


if __name__ == "__main__":
    sys.exit(main())
