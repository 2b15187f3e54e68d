"""Exact match of a checkpoint on the verifiable tasks, through mlx_dgemma and through transformers' own generate.

    python -m mlx_dgemma.demo.evaluate --n 200 --reference

Prompts are held out from training. Prints a Markdown table; the last column is the difference in points.
"""

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from mlx_dgemma import Engine, GenerationConfig
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.sweep.questions import QUESTIONS, Question, draw_questions
from mlx_dgemma.sweep.runner import ask, said
from mlx_dgemma.sweep.summary import score
from mlx_dgemma.tasks import MAX_NEW_TOKENS, ROWS
from mlx_dgemma.tasks.embedded import ROWS as LEARNED
from mlx_dgemma.tasks.talks import TALK_ROWS
from mlx_dgemma.terminal.cli import Parser, exit_code, require
from mlx_dgemma.text.reply import parse_reply

BATCH = 50


def reference_scorer(engine: Engine, folder: Path, seed: int) -> Callable[[list[Question]], float]:
    """Through transformers (needs the `test` extra), in batches of left-padded prompts; replies are read by ours."""
    import torch
    from transformers import DiffusionGemmaForBlockDiffusion

    from mlx_dgemma.demo.batches import left_pad

    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    tokenizer = engine.tokenizer
    assert tokenizer is not None  # or the engine refuses to be asked

    def right(question: Question, ids: list[int]) -> bool:
        reply = parse_reply(tokenizer, ids, tools=question.request.tools)
        return question.check(said(reply.content, reply.tool_calls))

    def exact(chosen: list[Question]) -> float:
        total = 0
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            ids, mask = left_pad([engine.prepare(question.request).ids for question in batch])
            new = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS).sequences[:, ids.shape[1] :]
            total += sum(right(question, row.tolist()) for question, row in zip(batch, new, strict=True))
        return total / len(chosen)

    return exact


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m mlx_dgemma.demo.evaluate", description="Exact match on the verifiable tasks.")
    add = parser.add_argument
    add("--model", type=Path, metavar="M", help="checkpoint folder (default: the embedded one)")
    add("--n", type=int, default=200, metavar="N", help="prompts per task (default: 200)")
    add("--seed", type=int, default=1000, metavar="N", help="of prompts and noise (default: 1000)")
    add("--tasks", nargs="+", choices=QUESTIONS, metavar="TASK", help="(default: all that it has learned)")
    add("--lessons", action="store_true", help="whole lessons, all of them by default: of a checkpoint in training")
    add("--reference", action="store_true", help="compare with transformers, which must be installed, as torch must")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    told = "interrupted"
    return exit_code(lambda: run(build_parser().parse_args(argv)), told, ends_process=argv is None)


def run(args: argparse.Namespace) -> int:
    """Asks, task by task, and prints the table."""
    if args.reference:
        require("torch", "transformers")
    engine = Engine.load(args.model)
    settings = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    reference = reference_scorer(engine, args.model or EMBEDDED, args.seed) if args.reference else None
    print("| task | exact match | steps per canvas | tokens per forward | transformers | difference |")
    print("|---|---|---|---|---|---|")
    for name in args.tasks or ((*ROWS, *TALK_ROWS) if args.lessons else LEARNED):
        chosen = draw_questions(name, args.seed, args.n, lessons=args.lessons)
        ours = score(ask(engine, question, settings, args.seed) for question in chosen)
        theirs, difference = "", ""
        if reference is not None:
            exact = reference(chosen)
            theirs, difference = f"{100 * exact:.1f} %", f"{100 * (ours.exact - exact):+.1f}"
        row = f"{100 * ours.exact:.1f} % | {ours.steps_per_canvas:.1f} | {ours.tokens_per_forward:.1f}"
        print(f"| {name} | {row} | {theirs} | {difference} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
