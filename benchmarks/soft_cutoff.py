"""What --soft-embedding-cutoff costs in accuracy and saves in work: the tables of docs/performance.md.

Accuracy, of the embedded checkpoint on its own tasks: at every step of an exact run the relative error (L2) of the soft
embeddings that the cutoff would have given instead, over the positions that it concerns; then whole runs with the
cutoff against exact ones with the same noise. Work, of the vocabulary stage alone (256 positions, hidden 512,
vocabulary 32,768, float32) with a share of positions that are uncertain: operations of the products that make the soft
embeddings, bytes of the stage's graph (see `benchmarks.graph`), and time, exact and with the cutoff in turn.

python -m benchmarks.soft_cutoff
"""

import argparse
import statistics
import time
from dataclasses import replace
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.graph import count
from mlx_dgemma import Engine, GenerationConfig
from mlx_dgemma.diffusion import denoiser
from mlx_dgemma.diffusion.table import EmbeddingTable
from mlx_dgemma.diffusion.vocabulary import GROUP, KEPT, Prediction, Query, SoftRows, predict
from mlx_dgemma.model import fused
from mlx_dgemma.sweep.questions import draw_questions
from mlx_dgemma.sweep.runner import ask
from mlx_dgemma.tasks.embedded import MAX_NEW_TOKENS, ROWS

POSITIONS, HIDDEN, VOCABULARY = 256, 512, 32_768
REGIONS = tuple((fused, name) for name in fused.HELPERS)


class Comparison:
    """Stands in for `predict`: answers exactly and measures what the cutoff would have changed."""

    def __init__(self, cutoff: float):
        self.cutoff, self.errors, self.positions = cutoff, [], 0

    def __call__(self, hidden: mx.array, table: EmbeddingTable, query: Query) -> Prediction:
        exact = predict(hidden, table, query)
        if query.wants_soft:
            groups = predict(hidden, table, replace(query, cutoff=self.cutoff)).groups
            rows = SoftRows.of(groups)
            cut = predict(hidden, table, replace(query, cutoff=self.cutoff, rows=rows))
            error, norm = mx.linalg.norm(cut.soft - exact.soft, axis=-1), mx.linalg.norm(exact.soft, axis=-1)
            self.errors += np.array(error / norm).reshape(-1)[np.array(rows.order)[rows.dense :]].tolist()
            self.positions += groups.size
        return exact


def accuracy(cutoffs: list[float], n: int) -> None:
    engine = Engine.load()
    questions = [question for row in ROWS for question in draw_questions(row, 1000, n)]
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    exact = [ask(engine, question, config, 1000) for question in questions]
    print("| cutoff, nats | positions concerned | error, mean | error, largest | exact match | steps | same text |")
    print("|---|---|---|---|---|---|---|")
    print(f"| none | 0 % | 0 | 0 | {share(o.correct for o in exact)} | {sum(o.steps for o in exact)} | |", flush=True)
    for cutoff in cutoffs:
        comparison = Comparison(cutoff)
        with mock.patch.object(denoiser, "predict", comparison):
            for question in questions[:: max(1, len(questions) // 40)]:
                ask(engine, question, config, 1000)
        cut = [ask(engine, q, replace_given(config, cutoff), 1000) for q in questions]
        errors, concerned = comparison.errors, len(comparison.errors) / comparison.positions
        print(
            f"| {cutoff:g} | {concerned:.0%} | {statistics.mean(errors):.1e} | {max(errors):.1e} "
            f"| {share(o.correct for o in cut)} | {sum(o.steps for o in cut)} "
            f"| {share(a.answer == b.answer for a, b in zip(cut, exact, strict=True))} |",
            flush=True,
        )


def replace_given(config: GenerationConfig, cutoff: float) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=config.max_new_tokens, soft_embedding_cutoff=cutoff)


def share(flags) -> str:
    flags = list(flags)
    return f"{sum(flags) / len(flags):.1%}"


def stage_seconds(hidden: mx.array, table: EmbeddingTable, query: Query) -> float:
    began = time.perf_counter()
    prediction = predict(hidden, table, query)
    mx.eval(prediction.proposal, prediction.entropy, prediction.soft)
    return time.perf_counter() - began


def work(repeat: int) -> None:
    keys = mx.random.split(mx.random.key(0), 3)
    embedding = nn.Embedding(VOCABULARY, HIDDEN)
    embedding.weight = mx.random.normal((VOCABULARY, HIDDEN), key=keys[0]) * HIDDEN**-0.5
    table = EmbeddingTable(embedding, mx.array(HIDDEN**0.5), 30.0)
    sure = 60 * embedding.weight[mx.random.randint(0, VOCABULARY, (POSITIONS,), key=keys[1])]
    exact = Query(0.6, mx.random.uniform(shape=(1, POSITIONS), key=keys[2]), wants_soft=True)
    print("| uncertain positions | GFLOP of soft embeddings, exact | cutoff 10 | MB, exact | cutoff 10 | time, ratio |")
    print("|---|---|---|---|---|---|")
    for uncertain in (1.0, 0.5, 0.125, 0.0):
        unsure = (mx.arange(POSITIONS) < uncertain * POSITIONS)[:, None]
        hidden = mx.where(unsure, sure / 60, sure)[None]
        cut = replace(exact, cutoff=10.0)
        cut = replace(cut, rows=SoftRows.of(predict(hidden, table, cut).groups))
        mx.eval(hidden, table.embedding.weight)
        pairs = [[stage_seconds(hidden, table, query) for query in (exact, cut)] for _ in range(repeat)]
        ratio = statistics.median(b / a for a, b in pairs)
        flops = [2 * POSITIONS * VOCABULARY * HIDDEN, soft_operations(cut.rows.dense)]
        moved = [
            count(lambda x, q=q: list_of(predict(x, table, q)), hidden, regions=REGIONS).moved for q in (exact, cut)
        ]
        print(
            f"| {uncertain:.0%} | {flops[0] / 1e9:.2f} | {flops[1] / 1e9:.2f} "
            f"| {moved[0] / 1e6:.0f} | {moved[1] / 1e6:.0f} | {ratio:.2f} |",
            flush=True,
        )


def soft_operations(dense: int) -> int:
    """Of the products, when so many positions read the whole table; the others score and mix KEPT groups."""
    return 2 * HIDDEN * (dense * VOCABULARY + 2 * (POSITIONS - dense) * KEPT * GROUP)


def list_of(prediction: Prediction) -> list[mx.array]:
    return [prediction.proposal, prediction.entropy, prediction.soft]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="questions per task (default: 50)")
    parser.add_argument("--cutoff", type=float, nargs="+", default=[5.0, 10.0, 15.0], help="nats (default: 5 10 15)")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    accuracy(args.cutoff, args.n)
    print()
    work(args.repeat)


if __name__ == "__main__":
    main()
