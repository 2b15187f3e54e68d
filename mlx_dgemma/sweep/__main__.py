"""Command line: the table on stdout, all else on stderr; exit 0, 1 (failed or interrupted), 2 (bad usage)."""

from __future__ import annotations

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dgemma.checkpoint.headers import sha256
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import check_output
from mlx_dgemma.sweep import frontier, journal
from mlx_dgemma.sweep.grid import FIELDS, Grid, Settings, parse_grid, text_of
from mlx_dgemma.sweep.paired import compare, comparison_table
from mlx_dgemma.sweep.plugins import settings_of
from mlx_dgemma.sweep.questions import QUESTIONS, Question, draw_questions, read_pairs
from mlx_dgemma.sweep.shards import Shard, described, merge, part, write
from mlx_dgemma.sweep.show import show, show_table
from mlx_dgemma.sweep.summary import summarise
from mlx_dgemma.sweep.trials import Row, Trial, plan_trials
from mlx_dgemma.tasks.embedded import MAX_NEW_TOKENS, ROWS
from mlx_dgemma.terminal.cli import Parser, exit_code, say
from mlx_dgemma.terminal.options import add_distributed, add_model, plan_of

if TYPE_CHECKING:
    from mlx_dgemma.distributed.session import Session
    from mlx_dgemma.sweep.runner import Runner

N = 100


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dgemma-sweep",
        description="Ask the same questions at every point of a grid of sampler settings, and compare the answers.",
        epilog=f"Fields: {', '.join(FIELDS)}.\nTasks: {', '.join(ROWS)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--set", action="append", default=[], metavar="FIELD=V,V", help="values of a setting; the grid is the product")
    add_model(parser)
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks of the embedded checkpoint (its default: all)")
    asked.add_argument("--data", type=Path, metavar="F", help='JSONL file of {"prompt": …, "answer": …} lines')
    add("--n", type=int, metavar="N", help=f"questions per task (default: {N}), or lines of the file (default: all)")
    add("--seed", type=int, default=0, metavar="N", help="of tasks' questions and of the noise (default: 0)")
    add("--max-tokens", type=int, metavar="N", help=f"length of an answer (default: tasks {MAX_NEW_TOKENS})")
    add("--output", type=Path, default=Path("sweep.csv"), metavar="F", help="a row per generation (default: sweep.csv)")
    about = "points of exact match within which a setting counts as no worse than the first (default: 2)"
    add("--margin", type=float, default=2.0, metavar="POINTS", help=about)
    add("--plot", type=Path, metavar="F", help="write the quality-steps frontier to F (.png, .pdf, .svg)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")
    again.add_argument("--force", action="store_true", help="start over, replacing the output")
    add_distributed(parser)
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--shard", metavar="R/N", help="ask only part R of N of the questions, as one of N machines")
    about = "ask nothing: put together what the same command wrote with --shard, all parts"
    parts.add_argument("--merge", nargs="+", type=Path, metavar="F", help=about)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    told = "interrupted; the same command goes on with --resume"
    return exit_code(lambda: run(*parse(argv)), told, ends_process=argv is None)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, Grid]:
    """The options, checked, and the grid."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.plan = plan_of(parser, args)
    try:
        return args, check_usage(args)
    except DGemmaError as error:
        parser.error(str(error))


def check_usage(args: argparse.Namespace) -> Grid:
    """The grid; fills in the defaults of `args` that depend on other options. DGemmaError for what cannot be meant."""
    grid = parse_grid(args.set)
    if args.n is not None and not 0 < args.n < 2**31:
        raise DGemmaError(f"--n must be a positive integer below 2^31, got {args.n}")
    if args.tasks is None and args.data is None and args.model is not None:
        raise DGemmaError("--model needs questions; give --data or --tasks")
    if args.data is None:
        args.n = args.n or N
        args.tasks = list(ROWS) if args.tasks is None else [row for text in args.tasks for row in text.split(",")]
        unknown = [row for row in args.tasks if row not in QUESTIONS]
        if unknown:
            raise DGemmaError(f"--tasks: no task {unknown[0]!r}; there are {', '.join(ROWS)}")
        if len(set(args.tasks)) < len(args.tasks):
            raise DGemmaError("--tasks names a task twice")
    if not 0 <= args.seed < 2**62:  # seed + index is a seed as well
        raise DGemmaError(f"--seed must be between 0 and 2^62 - 1, got {args.seed}")
    if not 0 < args.margin < 100:
        raise DGemmaError(f"--margin must be between 0 and 100 points, got {args.margin}")
    if args.max_tokens is not None and "max_new_tokens" in grid.axes:
        raise DGemmaError("--max-tokens and --set max_new_tokens exclude each other")
    args.shard = None if args.shard is None else Shard.of(args.shard)
    if args.merge is not None and args.resume:
        raise DGemmaError("--merge has nothing to resume; leave one out")
    settings_of(_base(args))
    return grid


def run(args: argparse.Namespace, grid: Grid) -> int:
    """Alone, or with other ranks; the exit code."""
    if args.plan is None or args.merge is not None:
        return _run(args, grid, None)
    with signals.uninterrupted():
        from mlx_dgemma.distributed.session import only_first, together
    with together(args.plan) as session, only_first(session):
        work = _run if session is None or session.is_first else _work_along
        code = work(args, grid, session)
        if session is not None:
            session.code = code
    return code


def _work_along(args: argparse.Namespace, grid: Grid, session: Session | None) -> int:
    """Any rank but the first: the same generations, of which it keeps nothing."""
    plan = part(plan_trials(grid, questions(args)), args.shard)
    assert session is not None  # there is a first one
    (done,) = session.from_first([0])
    if done < len(plan):
        runner = _runner(args, session)
        for _ in runner.rows(plan[done:]):
            signals.check()
    return 0


def _runner(args: argparse.Namespace, session: Session | None) -> Runner:
    """What asks, with the engine loaded, and shared if there are other ranks."""
    # late: MLX is not needed for --help, a mistyped option, or the table of a finished run
    from mlx_dgemma.terminal.start import load_engine, share

    engine = load_engine(args.model, args.dtype, wire=args.wire)
    if session is not None:
        share(session, engine, args.model)
    with signals.uninterrupted():
        from mlx_dgemma.sweep.runner import Runner
    return Runner(engine, _base(args), args.seed)


def _run(args: argparse.Namespace, grid: Grid, session: Session | None) -> int:
    """Everything that can fail early, then the generations, then the table and the plot."""
    if args.plot is not None:
        frontier.check_plot(args.plot)
    check_output(args.output, resume=args.resume, force=args.force)
    plan = part(plan_trials(grid, questions(args)), args.shard)
    if not plan:
        raise DGemmaError(f"--shard {args.shard} has no question; take fewer parts")
    description = described(describe(args, grid), args.shard)
    if args.merge is not None:
        rows, finished = merge(args.merge, grid, plan, description), True
        write(args.output, grid, rows, description)
    else:
        rows, finished = ask_all(args, grid, plan, description, session)
    lines = summarise(rows, grid)
    show(lines, grid, title(args, grid))
    compared = compare(rows, grid) if len(grid.points()) > 1 else []
    if compared:
        told = f"against {text_of(grid.points()[0])}, the same questions and noise"
        show_table(comparison_table(compared, grid.varying(), args.margin / 100), told)
    say(f"{len(rows)} generations: {args.output}; their run: {journal.description_file(args.output)}")
    if not finished:
        told = f"interrupted after {len(rows)} of {len(plan)} generations; the same command goes on with --resume"
        say(told)
        return signals.exit_code()
    if args.plot is not None:
        frontier.plot(lines, grid, title(args, grid), args.plot)
        say(f"plot: {args.plot}")
    return 0


def ask_all(
    args: argparse.Namespace, grid: Grid, plan: list[Trial], description: dict[str, Any], session: Session | None
) -> tuple[list[Row], bool]:  # fmt: skip
    """The rows of a run, which goes on with --resume; and whether it came to the end."""
    rows, nbytes = journal.read_back(args.output, grid, plan, description) if args.resume else ([], 0)
    if session is not None:
        session.from_first([len(rows)])  # which the others wait for
    if len(rows) == len(plan):
        journal.go_on(args.output, nbytes).close()  # without what a kill left behind the last row
        return rows, True
    return rows, carry_out(args, grid, plan, description, (rows, nbytes), session)


def questions(args: argparse.Namespace) -> list[Question]:
    if args.data is not None:
        return read_pairs(args.data, args.n)
    return [question for row in args.tasks for question in draw_questions(row, args.seed, args.n)]


def describe(args: argparse.Namespace, grid: Grid) -> dict[str, Any]:
    """What makes this run this run (`identity`), and what one may want to know about it later."""
    with signals.uninterrupted():
        from mlx_dgemma import __version__
        from mlx_dgemma.checkpoint.loading import resolve

    identity = {
        "grid": grid.axes,
        "tasks": args.tasks,
        "data": args.data and f"sha256 {sha256(args.data)[:16]}",
        "n": args.n,
        "seed": args.seed,
        "max_tokens": _base(args).get("max_new_tokens"),
        "model": f"sha256 {journal.fingerprint(resolve(args.model))}",
    }
    identity |= {str(file.name): f"sha256 {sha256(file)[:16]}" for file in grid.sources()}
    return {"identity": identity, "model": _name(args), "data": args.data and str(args.data), "version": __version__}


def carry_out(
    args: argparse.Namespace, grid: Grid, plan: list[Trial], description: dict[str, Any],
    known: tuple[list[Row], int], session: Session | None,
) -> bool:  # fmt: skip
    """Appends to the known rows, and to the CSV behind their bytes, what the plan has beyond them; whether all."""
    rows, nbytes = known
    runner, left = _runner(args, session), plan[len(rows) :]
    with signals.uninterrupted():
        from mlx_dgemma.sweep.progress import progress
    runner.check(left)
    with signals.uninterrupted():
        file = journal.go_on(args.output, nbytes) if nbytes else journal.begin(args.output, grid, description)
    with file, progress(len(plan), len(rows)) as bar:
        try:
            for row in runner.rows(left):
                with signals.uninterrupted():
                    journal.append(file, row)
                    rows.append(row)
                    bar.update(1)
        except KeyboardInterrupt:
            signals.hold()
            return False
    return True


def title(args: argparse.Namespace, grid: Grid) -> str:
    constant = grid.constant()
    return " · ".join([_name(args), *([text_of(constant)] if constant or not grid.axes else [])])


def _name(args: argparse.Namespace) -> str:
    return args.model or "embedded checkpoint"


def _base(args: argparse.Namespace) -> Settings:
    """Settings of every point, below those of the grid."""
    default = None if args.data is not None else MAX_NEW_TOKENS
    chosen = default if args.max_tokens is None else args.max_tokens
    return {} if chosen is None else {"max_new_tokens": chosen}


if __name__ == "__main__":
    sys.exit(main())
