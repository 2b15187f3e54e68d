"""Command line: serves a checkpoint over HTTP; exit 0, 1 (failed), 2 (bad usage)."""

from __future__ import annotations

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import os
import sys
from pathlib import Path

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import read_file
from mlx_dgemma.terminal.cli import Parser, exit_code, require, say
from mlx_dgemma.terminal.options import add_distributed, add_model, plan_of
from mlx_dgemma.text.request import MAX_IMAGES, MAX_ROWS

KEY = "DGEMMA_API_KEY"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dgemma-server",
        description="Serve DiffusionGemma to apps that speak OpenAI's or Anthropic's API.",
    )
    add_model(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1); others need a key")
    add("--port", type=int, default=8080, help="(default: 8080; 0 takes a free one)")
    add("--api-key-file", metavar="FILE", help=f"keys, one a line, of which clients have to give one; or ${KEY}")
    add("--no-auth", action="store_true", help="let everybody in at another address than 127.0.0.1")
    add("--allow-host", metavar="NAME", action="append", default=[], help="another name under which it may be asked")
    add("--allow-origin", metavar="URL", action="append", default=[], help="a page's origin that may ask, app://x say")
    add("--context", type=int, metavar="N", help="tokens of a prompt and its answer (default: what the model has)")
    add("--prefix-bytes", type=int, metavar="N", help="memory for prompts that are remembered (default: at most 2 GB)")
    add("--queue", type=int, default=32, metavar="N", help="requests that may wait (default: 32)")
    about = f"texts that are written at a time (default: {MAX_ROWS})"
    add("--max-batch", type=int, default=MAX_ROWS, metavar="N", help=about)
    about = f"images of a request (default: {MAX_IMAGES}; 0 takes none)"
    add("--max-images", type=int, default=MAX_IMAGES, metavar="N", help=about)
    add("--metrics", action="store_true", help="count what is done at /metrics, for Prometheus")
    add("--adapter", metavar="FOLDER", help=argparse.SUPPRESS)
    add("-q", "--quiet", action="store_true", help="no line for each request")
    add_distributed(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.adapter is not None:
        parser.error("--adapter: adapters are not supported yet")
    for name, least, most in (("port", 0, 65535), ("queue", 0, 10_000), ("max_batch", 1, 64), ("max_images", 0, 64)):
        if not least <= vars(args)[name] <= most:
            parser.error(f"--{name.replace('_', '-')} takes {least} to {most}, got {vars(args)[name]}")
    for name in ("context", "prefix_bytes"):
        if vars(args)[name] is not None and vars(args)[name] < 0:
            parser.error(f"--{name.replace('_', '-')} must be 0 or more, got {vars(args)[name]}")
    args.plan = plan_of(parser, args)
    return exit_code(lambda: run(args), "stopped", ends_process=argv is None)


def run(args: argparse.Namespace) -> int:
    """Loads the model and serves it until a signal comes."""
    keys = _keys(args.api_key_file)
    is_loopback = args.host in ("127.0.0.1", "localhost", "::1")
    if not is_loopback and not keys and not args.no_auth:
        raise DGemmaError(
            f"at {args.host} anybody on the network could ask; give --api-key-file FILE, or --no-auth if that is meant"
        )
    require("starlette", "uvicorn")
    with signals.uninterrupted():
        from mlx_dgemma.distributed.session import together
        from mlx_dgemma.server.serving import Options, serve, work_along
    options = Options(
        args.model, args.dtype, args.wire, args.host, args.port, keys, tuple(args.allow_host), tuple(args.allow_origin),
        args.context, args.prefix_bytes, args.queue, args.max_batch, args.quiet, args.metrics,
        args.max_images, args.plan,
    )  # fmt: skip
    if args.plan is None:
        serve(options, say)
        return 0
    with together(args.plan) as session:
        if session is None or session.is_first:
            serve(options, say, session)
        else:
            work_along(options, session)
    return 0


def _keys(path: str | None) -> tuple[str, ...]:
    """The keys of a file or of the environment."""
    if path is None:
        return tuple(os.environ.get(KEY, "").split())
    try:
        text = read_file(Path(path).expanduser()).decode("utf-8")
    except (OSError, ValueError) as error:
        raise DGemmaError(f"{path}: the keys cannot be read ({error})") from None
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise DGemmaError(f"{path} holds no key; write one a line")
    return keys


if __name__ == "__main__":
    sys.exit(main())
