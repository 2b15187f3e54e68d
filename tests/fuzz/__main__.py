"""Command line of the fuzzer: replays seeds, or runs for a while; exit 1 if anything failed."""

import argparse
import faulthandler
import sys
import time
from collections import Counter

from tests.fuzz.kind import Failure, Kind, tried
from tests.fuzz.kinds import KINDS

FIRST = 1_000_000  # seed of a longer run, far from those of the tests


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feed the package what it cannot expect.")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="the first one")
    parser.add_argument("--count", type=int, default=1, metavar="C", help="how many inputs of each kind (default: 1)")
    parser.add_argument("--minutes", type=float, metavar="M", help="how long, instead of --count")
    args = parser.parse_args(argv)
    kinds = [KINDS[name] for name in args.kind or KINDS]
    if args.seed is None and args.minutes is None:
        print(*KINDS, sep="\n")
        return 0
    return 1 if explore(kinds, args.seed if args.seed is not None else FIRST, args.count, args.minutes) else 0


def explore(kinds: list[Kind], seed: int, count: int, minutes: float | None) -> int:
    """Tries inputs of all kinds by turns and tells what fails; how many did."""
    began, answered, refused, failed = time.monotonic(), Counter(), Counter(), Counter()
    number, known = 0, set()
    while time.monotonic() - began < 60 * minutes if minutes is not None else number < count:
        for kind in kinds:
            # if even the alarm cannot end it (a library in C), the stacks are told and the process goes
            faulthandler.dump_traceback_later(70 * kind.seconds, exit=True)
            outcome = tried(kind, seed + number)
            faulthandler.cancel_dump_traceback_later()
            if isinstance(outcome, Failure):
                failed[kind.name] += 1
                is_new = outcome.signature not in known
                known.add(outcome.signature)
                print(f"\nFAILED {outcome}" if is_new else f"again: {outcome.replay}", flush=True)
            else:
                (answered if outcome else refused)[kind.name] += 1
        number += 1
    for kind in kinds:
        figures = f"{answered[kind.name]} answered, {refused[kind.name]} refused, {failed[kind.name]} failed"
        print(f"{kind.name}: {figures}", flush=True)
    return sum(failed.values())


if __name__ == "__main__":
    sys.exit(main())
