"""Several clients at a time: tokens per second and seconds to the first text, of texts that share their steps.

    python -m benchmarks.serving

A closed loop: each client asks, waits for its answer, and asks again. Prompts and answers are of mixed lengths, the
steps of a canvas too; the model is the small random one of `benchmarks.step` (float32, canvases of 256), which never
comes to an end by itself. Three ways take turns: one client; several clients, of whom one is served at a time; several
clients that share their steps. The ratios are of tokens per second, to one client's, and of the first text's median.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.models import SMALL_TEXT, config_dict, write_random
from mlx_dgemma import Engine, GenerationConfig, Request
from mlx_dgemma.terminal.cli import Parser, exit_code
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.scheduler import Scheduler

CANVAS = 256


@dataclass
class Load:
    """What came of some requests: tokens, seconds in all, and seconds to the first text of each."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)


def requests(count: int, seed: int) -> list[Request]:
    """Prompts of 16 to 512 tokens, answers of one to three canvases of 3 to 8 steps."""
    random, made = Random(seed), list[Request]()
    for number in range(count):
        settings = GenerationConfig(
            max_new_tokens=CANVAS * random.randint(1, 3), max_denoising_steps=random.randint(3, 8), eos_token_id=[]
        )
        prompt = [random.randrange(2, SMALL_TEXT["vocab_size"]) for _ in range(random.randint(16, 512))]
        made.append(Request(prompt, settings=settings, seed=number))
    return made


def closed_loop(engine: Engine, asked: Sequence[Request], clients: int, rows: int) -> Load:
    """So many clients share the requests; each asks its next one when it has its answer."""
    scheduler, load, left = Scheduler(engine.prepare, max_rows=rows), Load(), list(asked)
    began = time.perf_counter()
    waiting: dict[int, float] = {}  # by ticket: since when the first text is waited for
    running = 0
    while left or running:
        while left and running < clients:
            ticket, _ = scheduler.add(left.pop(0))
            waiting[ticket], running = time.perf_counter(), running + 1
        for ticket, event in scheduler.advance():
            if isinstance(event, Exception):
                raise event
            if isinstance(event, TextCanvas):
                load.tokens += len(event.tokens)
                if ticket in waiting:
                    load.first.append(time.perf_counter() - waiting.pop(ticket))
                running -= event.finish_reason is not None
    load.seconds = time.perf_counter() - began
    return load


def show(name: str, loads: Sequence[Load]) -> float:
    """Prints a way's figures; its tokens per second."""
    speed = statistics.median(load.tokens / load.seconds for load in loads)
    first = sorted(seconds for load in loads for seconds in load.first)
    p50, p95 = statistics.median(first), first[min(len(first) - 1, int(0.95 * len(first)))]
    print(f"| {name} | {speed:.1f} | {p50:.1f} | {p95:.1f} |", flush=True)
    return speed


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=4, help="at a time (default: 4)")
    parser.add_argument("--requests", type=int, default=12, help="of each way and round (default: 12)")
    parser.add_argument("--rounds", type=int, default=2, help="of the three ways in turn (default: 2)")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args), "interrupted")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    ways = {
        "1 client": (1, 1),
        f"{args.clients} clients, one served at a time": (args.clients, 1),
        f"{args.clients} clients that share steps": (args.clients, args.clients),
    }
    loads: dict[str, list[Load]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), config_dict(CANVAS))
        engine = Engine.load(Path(folder))
        closed_loop(engine, requests(1, 99), 1, 1)
        for number in range(args.rounds):
            asked = requests(args.requests, number)
            for name, (clients, rows) in ways.items():
                loads[name].append(closed_loop(engine, asked, clients, rows))
    print("| way | tokens/s | first text, p50 s | p95 s |\n|---|---|---|---|")
    one, _, shared = (show(name, own) for name, own in loads.items())
    pairs = [b.tokens / b.seconds / (a.tokens / a.seconds) for a, b in zip(*list(loads.values())[1:], strict=True)]
    print(f"\nshared steps to one client: {shared / one:.2f}; to one at a time: {statistics.median(pairs):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
