"""Run by each rank: whole generations, shared and alone in the same process, which are to be the same bit for bit.

The last line on stdout is a JSON object: by name, whether they were, or what differed.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_dgemma import Engine, GenerationConfig, Request
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.settling import Settling
from mlx_dgemma.model import cpu
from mlx_dgemma.model.share import Share
from mlx_dgemma.text.prefixes import PrefixStore
from mlx_dgemma.text.request import CanvasPlan

mx.set_default_device(mx.cpu)
LONG = "upper " + "abcd efgh ijkl mnop " * 20  # more than the window of 128, and several chunks
SUDOKU = "sudoku 1..4..1.2....3.1"


def settings(**fields) -> GenerationConfig:
    return GenerationConfig(**{"max_denoising_steps": 8, "max_new_tokens": 128, **fields})


REQUESTS = {
    "several canvases": Request("count 18 to 50", seed=3, settings=settings()),
    "a long prompt in chunks": Request(LONG, seed=1, settings=settings(max_denoising_steps=4)),
    "a cutoff": Request("sudoku " + "." * 16, seed=3, settings=settings(soft_embedding_cutoff=5.0)),
    "settling": Request(SUDOKU, seed=5, settings=settings(fast=True, max_denoising_steps=24)),
    "a diet": Request(SUDOKU, seed=5, settings=settings(settling=Settling(walk_every=3), max_denoising_steps=24)),
    "short canvases": Request("spell 7", seed=5, settings=settings(settling=Settling(start=0.25, crop=0.25))),
    "steering": Request("spell 1842", seed=2, canvas="one thousand {20} forty-two", settings=settings()),
    "a draft": Request(SUDOKU, seed=2, canvas=CanvasPlan(draft="1234341221434321", noise=0.5), settings=settings()),
    "alternatives": Request("roman 1994", alternatives=3, settings=settings()),
    "the causal mode reads": Request("roman 1994", causal_log_p=True, settings=settings()),
    "the causal mode writes": Request("roman 1994", mode="causal", settings=settings(max_new_tokens=8)),
    "repair": Request("roman 1994", repair=True, settings=settings()),
}


def told(event) -> list:
    """All that an event says, as comparable values."""
    if isinstance(event, DenoisingStep):
        arrays = [event.canvas, event.draft, event.entropy, event.log_p, event.accepted, *(event.alternatives or ())]
        return [event.step, event.mean_entropy, event.work, event.computed, *map(np.array, arrays)]
    if isinstance(event, tuple):
        return [event[0], *told(event[1])]
    if isinstance(event, float | dict | list):
        return [event]
    kept = ("text", "tokens", "log_p", "entropy", "causal_log_p", "finish_reason", "seed", "mean_log_p", "token_log_p")
    return [np.array(own) if not isinstance(own, str) else own for name, own in vars(event).items() if name in kept]


def same(ours: list, theirs: list) -> bool:
    if len(ours) != len(theirs):
        return False
    equal = lambda a, b: np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b  # noqa: E731
    return all(len(a) == len(b) and all(map(equal, a, b)) for a, b in zip(ours, theirs, strict=True))


def turns(engine: Engine) -> Iterable:
    """Two turns, of which the second goes on from what was remembered of the first."""
    store = PrefixStore()
    for prompt in (LONG, LONG + " x"):
        ids = engine.prepare(Request(prompt)).ids
        cache, cached = store.prefix(engine.model, ids, {len(ids) - 8})
        yield [cached, cache.length]
        yield [float(np.array(own[:, :, : cache.length].sum())) for own in cache.arrays()]


def scenarios(engine: Engine, seeing: Engine | None) -> dict[str, Callable[[], Iterable]]:
    found: dict[str, Callable[[], Iterable]] = {
        name: lambda request=request: engine.stream(request) for name, request in REQUESTS.items()
    }
    three = Request("spell 42", seed=4, samples=3, settings=settings())
    found["samples"] = lambda: engine.stream_samples(three)
    many = [REQUESTS[name] for name in ("several canvases", "settling", "steering", "a cutoff")]
    many += [Request(f"roman {n}", seed=n, settings=settings()) for n in (7, 1994, 3888)]
    found["several texts"] = lambda: sorted(engine.stream_many(many, max_rows=4), key=lambda own: own[0])
    found["a choice"] = lambda: engine.choose_each(Request("upper ab"), "{?}", [["AB", "BA"]])
    found["a score"] = lambda: [engine.score(Request("upper ab"), "AB", causal=causal) for causal in (False, True)]
    found["a prefix store"] = lambda: turns(engine)
    if seeing is not None:
        from PIL import Image

        shown = [Image.new("RGB", size, colour) for size, colour in (((90, 60), "red"), ((40, 40), "teal"))]
        asked = Request("what is in it", images=shown, settings=settings(max_new_tokens=32), seed=6)
        found["images"] = lambda: seeing.stream(asked)
    return found


def main(weights: list[int], seeing: str | None) -> None:
    share = Share(mx.distributed.init(strict=True, backend="ring"), weights)
    cpu.PREFILL_CHUNK = 96
    engines = [Engine.load(), None if seeing is None else Engine.load(Path(seeing))]
    found = {}
    for name, run in scenarios(*engines).items():
        results = []
        for own in (None, share):
            for engine in engines:
                if engine is not None:
                    engine.model.share = own
            results.append([told(event) for event in run()])
        found[name] = same(*results) and len(results[0]) > 0
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(weight) for weight in sys.argv[1].split(",")] if sys.argv[1] else [], *sys.argv[2:] or [None])
