"""Command line: a trace to a page, and to PNG plots; exit 0, 1 (failed), 2 (bad usage)."""

import argparse
import os
import sys
from pathlib import Path

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.terminal.cli import Parser


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dgemma-report",
        description="Show a run that `dgemma-generate --trace run.npz` recorded: one HTML page, no network needed.",
    )
    parser.add_argument("trace", metavar="run.npz", help="the recorded run")
    parser.add_argument("-o", "--output", metavar="FILE", help="the page (default: the trace's name with .html)")
    parser.add_argument(
        "--png", metavar="PREFIX", nargs="?", const="", help="PNG plots too: PREFIX-heatmap.png and PREFIX-curves.png; "
        "a folder may be given (default: the page's name without .html); needs matplotlib",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code. The paths written go to stdout."""
    parser = build_parser()
    args = parser.parse_args(argv)
    source = Path(args.trace)
    output = Path(args.output) if args.output else source.parent / f"{source.stem}.html"
    if os.path.realpath(output) == os.path.realpath(source):
        parser.error(f"the page would replace the trace {source}; give another name with -o")
    try:
        for path in run(source, output, args.png):
            print(path)
    except DGemmaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(source: Path, output: Path, png: str | None) -> list[Path]:
    """Writes what was asked for; the paths of the files."""
    # Late, so that --help and a mistyped option answer at once.
    from mlx_dgemma.report.page import write_report
    from mlx_dgemma.report.plots import check_matplotlib, write_plots
    from mlx_dgemma.trace.trace import load_trace

    if png is not None:
        check_matplotlib()
    trace = load_trace(source)
    write_report(trace, output)
    return [output, *([] if png is None else write_plots(trace, _prefix(png, output)))]


def _prefix(png: str, output: Path) -> Path:
    if not png:
        return output.parent / output.stem
    is_folder = png.endswith(os.sep) or Path(png).is_dir()
    return Path(png) / output.stem if is_folder else Path(png)


if __name__ == "__main__":
    sys.exit(main())
