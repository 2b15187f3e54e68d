"""Command line: a trace to a page, to pictures, or played; exit 0, 1 (failed), 2 (bad usage)."""

from __future__ import annotations

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_dgemma.files import check_writable
from mlx_dgemma.terminal.cli import Parser, exit_code

if TYPE_CHECKING:
    from mlx_dgemma.trace.trace import Trace


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dgemma-report",
        description="Show a run that `dgemma-generate --trace run.npz` recorded: one HTML page, no network needed.",
    )
    add = parser.add_argument
    add("trace", metavar="run.npz", help="the recorded run")
    add("-o", "--output", metavar="FILE", help="the page (default: the trace's name with .html)")
    about = "PNG plots too: PREFIX-heatmap.png and PREFIX-curves.png; a folder may be given (default: the page's name "
    add("--png", metavar="PREFIX", nargs="?", const="", help=about + "without .html); needs matplotlib")
    about = "a picture to share too: the first canvas at four steps, in light and dark (default: the page's name with "
    add("--svg", metavar="FILE", nargs="?", const="", help=about + ".svg)")
    about = "an animation to share too, a frame a step (default: the page's name with .gif)"
    add("--gif", metavar="FILE", nargs="?", const="", help=about)
    add("--columns", type=int, metavar="N", help="characters a row of --svg and --gif (default: as many as fit)")
    add("--play", action="store_true", help="replay the run on the terminal; a page is written only with -o")
    about = "--play X times as fast as recorded (default: as recorded, but at least 0.3 s a step)"
    add("--speed", type=float, metavar="X", help=about)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code. The paths written go to stdout."""
    return exit_code(lambda: run(parse(argv)), "interrupted", ends_process=argv is None)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What goes together, as usage errors."""
    if args.speed is not None and not args.play:
        parser.error("--speed needs --play")
    if args.speed is not None and not args.speed > 0:
        parser.error(f"--speed must be above 0, got {args.speed:g}")
    if args.columns is not None and args.svg is None and args.gif is None:
        parser.error("--columns needs --svg or --gif")
    if args.columns is not None and args.columns < 2:
        parser.error(f"--columns must be at least 2, got {args.columns}")
    page = _page(args)
    outputs: list[tuple[str, str, Path | None]] = [("page", "-o", page)]
    outputs += [("picture", f"--{kind}", _beside(vars(args)[kind], page, f".{kind}")) for kind in ("svg", "gif")]
    for what, option, path in outputs:
        if path is not None and os.path.realpath(path) == os.path.realpath(args.trace):
            parser.error(f"the {what} would replace the trace {args.trace}; give another name with {option}")


def run(args: argparse.Namespace) -> int:
    """Writes what was asked for, prints the paths, plays the run; the exit code."""
    with signals.uninterrupted():  # late, so that --help and a mistyped option answer at once
        from mlx_dgemma.trace.trace import load_trace

    _check_packages(args)
    trace = load_trace(args.trace)
    for path in _written(trace, args):
        print(path, flush=True)
    if args.play:
        from mlx_dgemma.report.play import play

        play(trace, args.speed)
    return 0


def _check_packages(args: argparse.Namespace) -> None:
    """Before anything is read or written."""
    if args.png is not None:
        from mlx_dgemma.report.plots import check_matplotlib

        check_matplotlib()


def _written(trace: Trace, args: argparse.Namespace) -> list[Path]:
    """Writes the files, if all of them can be written; their paths."""
    with signals.uninterrupted():
        from mlx_dgemma.report.gif import write_gif
        from mlx_dgemma.report.page import write_report
        from mlx_dgemma.report.plots import names, write_plots
        from mlx_dgemma.report.svg import write_svg

    page, written = _page(args), []
    plots = _beside(args.png, page, "")
    kinds = (write_svg, "svg"), (write_gif, "gif")
    pictures = [(write, _beside(vars(args)[kind], page, f".{kind}")) for write, kind in kinds]
    wanted = [path for _, path in pictures if path is not None] + ([] if plots is None else names(trace, plots))
    for path in (*([page] if args.output or not args.play else []), *wanted):
        check_writable(path)
    if args.output or not args.play:
        write_report(trace, page)
        written.append(page)
    if plots is not None:
        written += write_plots(trace, plots)
    for write, picture in pictures:
        if picture is not None:
            write(trace, picture, args.columns)
            written.append(picture)
    return written


def _page(args: argparse.Namespace) -> Path:
    source = Path(args.trace)
    return Path(args.output) if args.output else source.parent / f"{source.stem}.html"


def _beside(given: str | None, page: Path, suffix: str) -> Path | None:
    """A file that was asked for: by its name, by a folder, or without a name (""); then it is called as the page is."""
    if given is None:
        return None
    if not given:
        return page.parent / f"{page.stem}{suffix}"
    is_folder = given.endswith(os.sep) or Path(given).is_dir()
    return Path(given) / f"{page.stem}{suffix}" if is_folder else Path(given)


if __name__ == "__main__":
    sys.exit(main())
