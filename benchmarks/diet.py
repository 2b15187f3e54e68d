"""What a vocabulary diet saves, and whether its entropies are honest: the tables of docs/performance.md.

Work, of the vocabulary stage alone (256 positions, hidden 256, vocabulary 131,072, soft embeddings wanted) with a share
of positions that take a full walk: ids scored, operations of the products, bytes of the stage's graph (see
`benchmarks.graph`), and time of a step on diet over that of a full walk, in turn. Beside it the best that could be: the
ratio of operations where arithmetic is what takes the time, as here, and of bytes where memory is.

Honesty, of the embedded checkpoint on Sudokus: at every step on diet the full walk that it left out is made as well,
and the positions that were on diet are compared; then exact match, steps, and how many positions took full walks.

python -m benchmarks.diet
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.graph import count
from mlx_dgemma import Engine, GenerationConfig, Settling
from mlx_dgemma.diffusion import denoiser, diet
from mlx_dgemma.diffusion.diet import TAIL, Shortlist, predict_on_diet
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import Prediction, Query, predict
from mlx_dgemma.model import fused
from mlx_dgemma.sweep.questions import draw_questions
from mlx_dgemma.sweep.runner import ask

POSITIONS, HIDDEN, VOCABULARY, GROUPS = 256, 256, 131_072, 8
QUESTIONS = ("sudoku", "sudoku with 4 given", "sudoku with 2 given", "sudoku with 0 given")
ROUNDING = 1e-5  # nats; what two ways to add up may differ by
NEVER = 10**6  # steps: more than any canvas has
REGIONS = tuple((fused, name) for name in fused.HELPERS)
RULES = {
    "the published sampler": None,
    "diet alone, 2 groups": Settling(steps=NEVER, walk_every=3, groups=2),
    "settling": Settling(),
    "settling and diet, 2 groups": Settling(walk_every=3, groups=2),
    "settling and diet, 1 group": Settling(walk_every=3, groups=1),
}


def seconds(step: Callable[[], Prediction]) -> float:
    began = time.perf_counter()
    mx.eval(needed(step()))
    return time.perf_counter() - began


def needed(told: Prediction) -> list[mx.array]:
    return [told.proposal, told.entropy, told.log_p, told.soft, *told.heaviest]


def work(repeat: int, bits: int | None) -> None:
    keys = mx.random.split(mx.random.key(0), 3)
    embedding = nn.Embedding(VOCABULARY, HIDDEN)
    embedding.weight = mx.random.normal((VOCABULARY, HIDDEN), key=keys[0]) * HIDDEN**-0.5
    sure = 60 * embedding.weight[mx.random.randint(0, VOCABULARY, (POSITIONS,), key=keys[1])]
    table = EmbeddingTable(embedding.to_quantized(64, bits) if bits else embedding, mx.array(HIDDEN**0.5), 30.0)
    query = Query(0.6, mx.random.uniform(shape=(1, POSITIONS), key=keys[2]), wants_soft=True, keep=GROUPS)
    print("| positions that walk | ids scored, full | diet | GFLOP, full | diet | MB, full | diet | operations, ratio "
          "| bytes, ratio | time, ratio |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for unsure in (0.0, 1 / 16, 1 / 4, 1 / 2):
        flat = (mx.arange(POSITIONS) < unsure * POSITIONS)[:, None]
        hidden = mx.where(flat, sure / 60, sure)[None]
        groups, tail = predict(hidden, table, query).heaviest
        shortlist = Shortlist.of(groups, tail, np.array(tail > TAIL))
        mx.eval(hidden, table.embedding.parameters(), groups, tail)
        steps = [lambda x: predict(x, table, query), lambda x, s=shortlist: predict_on_diet(x, table, query, s)]
        scored = [step(hidden).scored for step in steps]
        moved = [count(lambda x, s=step: needed(s(x)), hidden, regions=REGIONS).moved for step in steps]
        pairs = [[seconds(lambda s=step, x=hidden: s(x)) for step in steps] for _ in range(repeat)]
        ratio = statistics.median(diet / full for full, diet in pairs)
        flops = [4 * ids * HIDDEN / 1e9 for ids in scored]  # scores and soft embeddings
        print(
            f"| {shortlist.walks / POSITIONS:.0%} | {scored[0]:,} | {scored[1]:,} | {flops[0]:.2f} | {flops[1]:.2f} "
            f"| {moved[0] / 1e6:.0f} | {moved[1] / 1e6:.0f} "
            f"| {flops[1] / flops[0]:.3f} | {moved[1] / moved[0]:.3f} | {ratio:.3f} |",
            flush=True,
        )


@dataclass
class Comparison:
    """Stands in for both ways to predict, and compares positions on diet with the full walk that they left out."""

    walked: int = 0
    others: list[bool] = field(default_factory=list)  # whether the likeliest token is another one
    excess: list[float] = field(default_factory=list)  # nats told beyond the true entropy

    def full(self, hidden: mx.array, table: EmbeddingTable, query: Query) -> Prediction:
        self.walked += hidden.shape[0] * hidden.shape[1]
        return predict(hidden, table, query)

    def diet(self, hidden: mx.array, table: EmbeddingTable, query: Query, shortlist: Shortlist) -> Prediction:
        told = predict_on_diet(hidden, table, query, shortlist)
        true = predict(hidden, table, replace(query, u=None, wants_soft=False))
        own = np.array(shortlist.order)[shortlist.walks :]
        self.walked += shortlist.walks
        self.others += np.array(told.argmax != true.argmax).reshape(-1)[own].tolist()
        self.excess += np.array(told.entropy - true.entropy).reshape(-1)[own].tolist()
        return told

    def columns(self) -> str:
        on_diet = len(self.excess)
        share = f"{self.walked / (self.walked + on_diet):.0%}"
        if not on_diet:
            return f"{share} | | | |"
        excess = np.array(self.excess)
        others, too_sure = np.mean(self.others), np.mean(excess < -ROUNDING)
        return f"{share} | {others:.2%} | {too_sure:.2%} | {max(-excess.min(), 0):.1e} | {excess.mean():.1e}"


def honesty(n: int) -> None:
    engine = Engine.load()
    questions = [question for row in QUESTIONS for question in draw_questions(row, 1000, n)]
    print("| sampler | positions that walk | other argmax | entropy too low | by at most | excess, mean "
          "| exact match | steps |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name, rule in RULES.items():
        own, config = Comparison(), GenerationConfig(settling=rule)
        with mock.patch.multiple(denoiser, predict=own.full, predict_on_diet=own.diet):
            outcomes = [ask(engine, question, config, 1000) for question in questions]
        right = statistics.mean(outcome.correct for outcome in outcomes)
        steps = statistics.mean(outcome.steps for outcome in outcomes)
        print(f"| {name} | {own.columns()} | {right:.1%} | {steps:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="questions per task (default: 50)")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--tile", type=int, default=16, help="walking positions are rounded up to it (default: 16)")
    parser.add_argument("--bits", type=int, help="of a quantized table (default: float32)")
    args = parser.parse_args()
    with mock.patch.object(diet, "DENSE_ROWS", args.tile):
        work(args.repeat, args.bits)
        print()
        honesty(args.n)


if __name__ == "__main__":
    main()
