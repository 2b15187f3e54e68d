"""Run by each rank: what ranks with a part of the weights each write, beside what one process with all of them does.

The last line on stdout is a JSON object: by name, `None` if both are the same to rounding and all ranks the same bit
for bit, or what is not.
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_dgemma import Engine, Request
from mlx_dgemma.model import cpu
from mlx_dgemma.model.ranks import Ranks
from mlx_dgemma.text.prefixes import PrefixStore
from tests.distributed.whole import LONG, REQUESTS, scenarios, settings, told

NEAR = 2e-3  # nats and the like; sums of other orders are 1e-6 apart, and steps make that more
WHOLE_TABLE = ("a cutoff", "a diet")  # what a table that is cut is not asked


def by_text(engine: Engine) -> dict[str, Callable[[], Iterable]]:
    """What is asked of the embedded checkpoint."""
    found = {name: own for name, own in scenarios(engine, None).items() if name not in WHOLE_TABLE}
    many = [REQUESTS[name] for name in ("several canvases", "settling", "steering")]
    many += [Request(f"roman {n}", seed=n, settings=settings()) for n in (7, 1994, 3888)]
    found["several texts"] = lambda: sorted(engine.stream_many(many, max_rows=4), key=lambda own: own[0])

    def turns() -> Iterable:
        """The second goes on from what was remembered of the first: each rank's own heads."""
        remembering = replace(engine, prefixes=PrefixStore())
        for prompt in (LONG, LONG + " x"):
            yield from remembering.stream(Request(prompt, settings=settings()))

    return {**found, "a prefix store": turns}


def by_ids(engine: Engine) -> dict[str, Callable[[], Iterable]]:
    """What is asked of a checkpoint without a tokenizer; its window is much shorter than the prompt."""
    ids, size = list(range(5, 45)), engine.model.config.vocab_size
    canvas = mx.array([[(7 * i) % size for i in range(16)]])

    def passes() -> Iterable:
        cache = engine.model.make_cache()
        hidden = engine.model.encode(mx.array([ids]), cache)
        mx.eval(hidden, cache.arrays())
        first = engine.model.denoise(canvas, cache)
        mx.eval(first)
        return [[np.array(own)] for own in (hidden, first, engine.model.denoise(canvas, cache, first))]

    asked = {
        "two canvases": Request(ids, seed=3, settings=settings(max_new_tokens=32, max_denoising_steps=24)),
        "one with alternatives": Request(ids[:3], alternatives=3, settings=settings(max_new_tokens=16)),
        "the causal mode": Request(ids, mode="causal", settings=settings(max_new_tokens=4)),
    }
    return {"passes": passes, **{name: lambda own=own: engine.stream(own) for name, own in asked.items()}}


def difference(ours: list, theirs: list) -> str | None:
    """What differs by more than rounding."""
    if [len(own) for own in ours] != [len(own) for own in theirs]:
        return f"{len(ours)} events, {len(theirs)} alone, or of other kinds"
    for number, (event, other) in enumerate(zip(ours, theirs, strict=True)):
        for a, b in zip(event, other, strict=True):
            if not near(a, b):
                return f"event {number}: {a!r}, alone {b!r}"[:600]
    return None


def near(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and near(list(a.values()), list(b.values()))
    a, b = (np.array(own) for own in (a, b))
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        return a.shape == b.shape and np.allclose(a, b, atol=NEAR, rtol=NEAR)
    return a.dtype.kind == b.dtype.kind and np.array_equal(a, b)


def bits(events: list) -> int:
    """A checksum of all that events tell, that fits an exchange of whole numbers."""
    arrays = [np.array(part) for event in events for part in event]
    return zlib.crc32(b"".join(repr(a).encode() if a.dtype.kind == "O" else a.tobytes() for a in arrays)) >> 1


def main(folders: list[str]) -> None:
    ranks = Ranks(mx.distributed.init(strict=True, backend="ring"))
    cpu.PREFILL_CHUNK = 32
    found = {}
    for folder in folders:
        path = Path(folder) if folder else None
        whole, cut = Engine.load(path), Engine.load(path, ranks=ranks)
        runs = [by_text(own) if path is None else by_ids(own) for own in (whole, cut)]
        for name in runs[0]:
            theirs, ours = ([told(e) if not isinstance(e, list) else e for e in run[name]()] for run in runs)
            alike = len(set(ranks.numbers(bits(ours)))) == 1
            found[f"{folder} {name}"] = difference(ours, theirs) if alike else "ranks differ"
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
