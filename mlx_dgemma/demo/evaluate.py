"""Exact match of a checkpoint on the verifiable tasks, through mlx_dgemma and through transformers' own generate.

    python -m mlx_dgemma.demo.evaluate --n 200 --reference

Prompts are held out from training. Prints a Markdown table; the last column is the difference in points. With --shard
several machines each ask a part of the questions, and --merge prints the table of all.
"""

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlx_dgemma import Engine, GenerationConfig
from mlx_dgemma.checkpoint.loading import EMBEDDED, resolve
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import check_output, read_file, write_whole
from mlx_dgemma.sweep.journal import fingerprint
from mlx_dgemma.sweep.questions import QUESTIONS, Question, draw_questions
from mlx_dgemma.sweep.runner import ask, said
from mlx_dgemma.sweep.shards import Shard
from mlx_dgemma.sweep.trials import Outcome
from mlx_dgemma.tasks import MAX_NEW_TOKENS, ROWS
from mlx_dgemma.tasks.embedded import ROWS as LEARNED
from mlx_dgemma.tasks.talks import TALK_ROWS
from mlx_dgemma.terminal.cli import Parser, exit_code, require
from mlx_dgemma.text.reply import parse_reply

BATCH = 50


@dataclass(frozen=True)
class Counts:
    """What answers to a row's questions add up to; `theirs`: the reference's right ones, None if it was not asked."""

    n: int = 0
    correct: int = 0
    steps: int = 0
    canvases: int = 0
    tokens: int = 0
    theirs: int | None = None

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], theirs: int | None) -> "Counts":
        each = [cls(1, int(o.correct), o.steps, o.canvases, o.tokens, 0) for o in outcomes]
        return replace(sum(each, cls(theirs=0)), theirs=theirs)

    def __add__(self, other: "Counts") -> "Counts":
        theirs = None if self.theirs is None or other.theirs is None else self.theirs + other.theirs
        return Counts(
            self.n + other.n, self.correct + other.correct, self.steps + other.steps,
            self.canvases + other.canvases, self.tokens + other.tokens, theirs,
        )  # fmt: skip

    def line(self, name: str) -> str:
        """Of the Markdown table."""
        exact, theirs, difference = self.correct / self.n, "", ""
        if self.theirs is not None:
            theirs, difference = f"{100 * self.theirs / self.n:.1f} %", f"{100 * (exact - self.theirs / self.n):+.1f}"
        figures = f"{100 * exact:.1f} % | {self.steps / self.canvases:.1f} | {self.tokens / self.steps:.1f}"
        return f"| {name} | {figures} | {theirs} | {difference} |"


def reference_scorer(engine: Engine, folder: Path, seed: int) -> Callable[[list[Question]], int]:
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

    def exact(chosen: list[Question]) -> int:
        total = 0
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            ids, mask = left_pad([engine.prepare(question.request).ids for question in batch])
            new = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS).sequences[:, ids.shape[1] :]
            total += sum(right(question, row.tolist()) for question, row in zip(batch, new, strict=True))
        return total

    return exact


HEAD = (
    "| task | exact match | steps per canvas | tokens per forward | transformers | difference |\n"
    "|---|---|---|---|---|---|"
)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m mlx_dgemma.demo.evaluate", description="Exact match on the verifiable tasks.")
    add = parser.add_argument
    add("--model", type=Path, metavar="M", help="checkpoint folder (default: the embedded one)")
    add("--n", type=int, default=200, metavar="N", help="prompts per task (default: 200)")
    add("--seed", type=int, default=1000, metavar="N", help="of prompts and noise (default: 1000)")
    add("--tasks", nargs="+", choices=QUESTIONS, metavar="TASK", help="(default: all that it has learned)")
    add("--lessons", action="store_true", help="whole lessons, all of them by default: of a checkpoint in training")
    add("--reference", action="store_true", help="compare with transformers, which must be installed, as torch must")
    add("--shard", metavar="R/N", help="ask only part R of N of the questions, and write what they came to to --output")
    add("--output", type=Path, metavar="F", help="with --shard: a JSON file")
    add("--merge", nargs="+", type=Path, metavar="F", help="print the table of all parts, which were written before")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.shard = None if args.shard is None else Shard.of(args.shard)
    except DGemmaError as error:
        parser.error(str(error))
    if (args.shard is None) != (args.output is None):
        parser.error("--shard and --output go together; give both")
    if args.merge is not None and args.shard is not None:
        parser.error("--merge does not go with --shard; leave one out")
    return exit_code(lambda: run(args), "interrupted", ends_process=argv is None)


def run(args: argparse.Namespace) -> int:
    """Asks, task by task, and prints the table."""
    if args.merge is not None:
        print(HEAD, *(counts.line(name) for name, counts in merged(args.merge).items()), sep="\n")
        return 0
    if args.reference:
        require("torch", "transformers")
    if args.output is not None:
        check_output(args.output, resume=False, force=False)
    found: dict[str, Counts] = {}
    print(HEAD, flush=True)
    for name, counts in asked(args):
        found[name] = counts
        print(counts.line(name), flush=True)
    if args.output is not None:
        told = {"asked": identity(args), "shard": str(args.shard), "rows": {n: asdict(own) for n, own in found.items()}}
        write_whole(args.output, lambda file: file.write(json.dumps(told, indent=1).encode()))
    return 0


def asked(args: argparse.Namespace) -> Iterator[tuple[str, Counts]]:
    """Row by row, what the answers to this shard's questions, or to all, add up to."""
    engine = Engine.load(args.model)
    settings = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    reference = reference_scorer(engine, args.model or EMBEDDED, args.seed) if args.reference else None
    for name in args.tasks or ((*ROWS, *TALK_ROWS) if args.lessons else LEARNED):
        drawn = draw_questions(name, args.seed, args.n, lessons=args.lessons)
        chosen = [own for own in drawn if args.shard is None or args.shard.takes(own.index)]
        if not chosen:
            raise DGemmaError(f"--shard {args.shard} has no question of {name}; take fewer parts")
        outcomes = [ask(engine, question, settings, args.seed) for question in chosen]
        yield name, Counts.of(outcomes, None if reference is None else reference(chosen))


def identity(args: argparse.Namespace) -> dict[str, Any]:
    """What parts of one evaluation have in common."""
    names = "n", "seed", "tasks", "lessons", "reference"
    return {**{name: vars(args)[name] for name in names}, "model": fingerprint(resolve(args.model))}


def merged(files: Sequence[Path]) -> Mapping[str, Counts]:
    """The rows of a whole evaluation.

    Raises:
        DGemmaError: a file that is no part of the same evaluation, one that is there twice, one that is missing.
    """
    parts: dict[int, dict[str, Any]] = {}
    first: tuple[Shard, dict[str, Any]] | None = None
    for path in files:
        try:
            told = json.loads(read_file(path).decode("utf-8"))
            shard, asked = Shard.of(told["shard"]), dict(told["asked"])
            rows = {name: Counts(**own) for name, own in told["rows"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, DGemmaError):
            raise DGemmaError(f"{path} is no part of an evaluation; give what --shard wrote") from None
        first = first or (shard, asked)
        differing = [name for name in {**first[1], **asked} if first[1].get(name) != asked.get(name)]
        if differing or shard.count != first[0].count:
            raise DGemmaError(f"{path} is of another evaluation than {files[0]}: {(*differing, 'shard')[0]} differs")
        if shard.number in parts:
            raise DGemmaError(f"{path} is shard {shard}, which is there twice; give each once")
        parts[shard.number] = rows
    assert first is not None  # argparse wants a file
    if missing := [f"{number}/{first[0].count}" for number in range(1, first[0].count + 1) if number not in parts]:
        raise DGemmaError(f"--merge: shard {', '.join(missing)} is missing; give all {first[0].count}")
    whole: dict[str, Counts] = parts.pop(1)
    for rows in parts.values():
        whole = {name: counts + rows[name] for name, counts in whole.items()}
    return whole


if __name__ == "__main__":
    sys.exit(main())
