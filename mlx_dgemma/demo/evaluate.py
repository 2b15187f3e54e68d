"""Exact match of a checkpoint on the verifiable tasks, through mlx_dgemma and through transformers' own generate.

    python -m mlx_dgemma.demo.evaluate --n 200 --reference

Prompts are held out from training. Prints a Markdown table; the last column is the difference in points.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_dgemma import GenerationConfig, generate_text, load
from mlx_dgemma.demo.tasks import TASKS, Example, examples
from mlx_dgemma.loading import EMBEDDED

MAX_NEW_TOKENS = 128
HARD = "sudoku with 4 given"  # the hardest puzzles of the task, in a row of their own
BATCH = 50


@dataclass(frozen=True)
class Score:
    """Share of right answers, denoising steps per canvas, text tokens per denoising step."""

    exact: float
    steps_per_canvas: float
    tokens_per_forward: float


def draw_examples(row: str, seed: int, n: int) -> list[Example]:
    """Held-out examples for a row of the table: a task, or HARD."""
    if row != HARD:
        return list(itertools.islice(examples(seed, held_out=True, task=row), n))
    puzzles = examples(seed, held_out=True, task="sudoku")
    return list(itertools.islice((e for e in puzzles if e.prompt.count(".") == 12), n))


def score(folder: Path, chosen: list[Example], seed: int) -> Score:
    """Through mlx_dgemma, one prompt at a time."""
    model, tokenizer = load(folder)
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    results = [generate_text(model, tokenizer, e.prompt, config, seed=seed + i) for i, e in enumerate(chosen)]
    right = sum(e.task.check(e.prompt, r.text) for e, r in zip(chosen, results, strict=True))
    steps = sum(r.stats.steps for r in results)
    canvases, tokens = sum(r.stats.canvases for r in results), sum(r.stats.tokens for r in results)
    return Score(right / len(chosen), steps / canvases, tokens / steps)


def reference_scorer(folder: Path, seed: int) -> Callable[[list[Example]], float]:
    """Through transformers (needs the `test` extra), in batches of left-padded prompts."""
    import torch
    from transformers import DiffusionGemmaForBlockDiffusion

    from mlx_dgemma.demo.train import TOKENIZER, encode_prompt, left_pad

    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(seed)

    def exact(chosen: list[Example]) -> float:
        right = 0
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            ids, mask = left_pad([encode_prompt(e.prompt) for e in batch])
            new = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS).sequences[:, ids.shape[1] :]
            texts = [TOKENIZER.decode(row.tolist(), skip_special_tokens=True) for row in new]
            right += sum(e.task.check(e.prompt, text) for e, text in zip(batch, texts, strict=True))
        return right / len(chosen)

    return exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="checkpoint folder (default: the embedded one)")
    parser.add_argument("--n", type=int, default=200, help="prompts per task (default: 200)")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, HARD], default=[*TASKS, HARD], metavar="TASK")
    parser.add_argument("--reference", action="store_true", help="compare with transformers")
    args = parser.parse_args()
    reference = reference_scorer(args.model, args.seed) if args.reference else None
    print("| task | exact match | steps per canvas | tokens per forward | transformers | difference |")
    print("|---|---|---|---|---|---|")
    for name in args.tasks:
        chosen = draw_examples(name, args.seed, args.n)
        ours = score(args.model, chosen, args.seed)
        theirs, difference = "", ""
        if reference is not None:
            exact = reference(chosen)
            theirs, difference = f"{100 * exact:.1f} %", f"{100 * (ours.exact - exact):+.1f}"
        row = f"{100 * ours.exact:.1f} % | {ours.steps_per_canvas:.1f} | {ours.tokens_per_forward:.1f}"
        print(f"| {name} | {row} | {theirs} | {difference} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
