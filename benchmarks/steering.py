"""What steering is worth with the embedded checkpoint: Sudokus with their given cells clamped, and the best of several.

    python -m benchmarks.steering

Held-out puzzles with four given cells; each puzzle has the same noise both times.
"""

import argparse
from itertools import groupby

from mlx_dgemma import Engine, Request
from mlx_dgemma.tasks import HARD
from mlx_dgemma.tasks.embedded import draw_examples

SAMPLES, SEED = 4, 1000


def skeleton(puzzle: str) -> str:
    """A Sudoku as a template: its free cells are gaps."""
    runs = ((is_free, "".join(cells)) for is_free, cells in groupby(puzzle, key=lambda cell: cell == "."))
    return "".join(f"{{{len(cells)}}}" if is_free else cells for is_free, cells in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="puzzles (default: 100)")
    n = parser.parse_args().n
    engine = Engine.load()
    puzzles = draw_examples(HARD, SEED, n)
    for name, is_clamped in (("free", False), ("given cells clamped", True)):
        right = steps = 0
        for seed, example in enumerate(puzzles):
            canvas = skeleton(example.prompt.split()[1]) if is_clamped else ()
            result = engine.generate(Request(example.prompt, seed=seed, canvas=canvas))
            right, steps = right + example.task.check(example.prompt, result.text), steps + result.stats.steps
        print(f"{HARD}, {name}: {right} of {n} solved, {steps / n:.1f} steps", flush=True)
    first = best = 0
    for i, example in enumerate(puzzles):
        samples = engine.samples(Request(example.prompt, samples=SAMPLES, seed=SAMPLES * i))
        solved = {sample.seed: example.task.check(example.prompt, sample.result.text) for sample in samples}
        first, best = first + solved[SAMPLES * i], best + solved[samples[0].seed]
    print(f"{HARD}: {first} of {n} solved by the first seed, {best} by the best of {SAMPLES}")


if __name__ == "__main__":
    main()
