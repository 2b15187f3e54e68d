"""What a conversation's prompts cost to encode, turn by turn, with and without a store of prefixes.

    python -m benchmarks.turns

A random model with the published one's ratio of layers, 20 turns that end at 16k tokens. Both ways are asked each turn,
one behind the other, so that a busy machine slows both.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from benchmarks.models import config_dict, write_random
from mlx_dgemma.checkpoint.loading import load
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.prefixes import PrefixStore

TEXT = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 192, "moe_intermediate_size": 64}
OPENING = 4  # tokens that open the model's turn: history writes what follows them anew


def conversation(turns: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """The prompts of a conversation, each the last one, its answer, and a question."""
    draw, per_turn = random.Random(seed), tokens // turns
    prompts, history = [], list[int]()
    for _ in range(turns):
        history = history + [draw.randrange(10, 4096) for _ in range(per_turn - OPENING)]
        prompts.append([*history, *range(OPENING)])
    return prompts


def cold(model: DiffusionGemma, ids: list[int]) -> float:
    """Seconds to encode a prompt from nothing."""
    began = time.perf_counter()
    prefill(model, mx.array([ids]), model.make_cache())
    return time.perf_counter() - began


def warm(model: DiffusionGemma, store: PrefixStore, ids: list[int]) -> tuple[float, int]:
    """Seconds to encode what the store does not know, and how many tokens it knew."""
    began = time.perf_counter()
    _, cached = store.prefix(model, ids, {len(ids) - OPENING})
    return time.perf_counter() - began, cached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=16_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = load(write_random(Path(folder) / "model", config_dict(**TEXT)))[0]
    store, prompts = PrefixStore(), conversation(args.turns, args.tokens)
    cold(model, prompts[0])  # what is made once
    seconds, encoded, names = [0.0, 0.0], [0, 0], ("without", "with")
    print(f"{'turn':>4} {'prompt':>7} {'encoded':>8} {'without':>9} {'with':>9} {'kept':>9}")
    for turn, ids in enumerate(prompts, 1):
        alone, (together, cached) = cold(model, ids), warm(model, store, ids)
        new = len(ids) - cached
        seconds = [seconds[0] + alone, seconds[1] + together]
        encoded = [encoded[0] + len(ids), encoded[1] + new]
        if turn in (1, 2, 5, 10, 15, args.turns):
            kept = f"{store.nbytes / 1e6:6.1f} MB"
            print(f"{turn:4} {len(ids):7,} {new:8,} {alone:7.2f} s {together:7.2f} s {kept}")
    for name, own, count in zip(names, seconds, encoded, strict=True):
        print(f"{name:8} {own:7.1f} s, {count:,} tokens encoded")
    print(f"ratio    {seconds[1] / seconds[0]:.2f} of the time, {encoded[1] / encoded[0]:.2f} of the tokens")


if __name__ == "__main__":
    main()
