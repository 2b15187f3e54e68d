"""What each of N machines does in one denoising step that they share, counted from its graph; and predicted speed-ups.

    python -m benchmarks.distributed

At the published model's sizes with bfloat16 activations, of which nothing is computed: operations of matrix products
(experts apart, whose tiles are part-empty with fewer rows), bytes sent and received, and exchanges, for every rank of
N = 1, 2 and 4, as a GPU would get them. The balance is the largest rank's operations over the mean.

Predictions are arithmetic, not measurements: the step's floor at a rank's rows and 4 bits a weight, at the
share of it that runners reach, plus for each exchange the hand-over from GPU to CPU and back, and over the link so
many phases and bytes.
"""

import argparse
import sys
from dataclasses import dataclass
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from benchmarks.graph import Work, count
from mlx_dgemma.bench.chips import CHIPS, Chip
from mlx_dgemma.bench.predictions import OF_PEAK, TILE
from mlx_dgemma.bench.roofline import Widths, floor_seconds, quantized_bits, step_stages
from mlx_dgemma.diffusion.shared import make_denoiser
from mlx_dgemma.diffusion.vocabulary import Query
from mlx_dgemma.model import cpu
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.share import Share
from mlx_dgemma.terminal.cli import Parser, exit_code

PUBLISHED = {
    "model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"], "canvas_length": 256,
    "eos_token_id": [1],
    "text_config": {
        "model_type": "diffusion_gemma_text", "vocab_size": 262_144, "hidden_size": 2816, "intermediate_size": 2112,
        "moe_intermediate_size": 704, "num_experts": 128, "top_k_experts": 8, "num_hidden_layers": 30,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5, "num_attention_heads": 16,
        "head_dim": 256, "num_key_value_heads": 8, "global_head_dim": 512, "num_global_key_value_heads": 2,
        "sliding_window": 1024, "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "rope_parameters": {
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
            "full_attention": {
                "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0, "rope_type": "proportional",
            },
        },
    },
}  # fmt: skip
RANKS = (1, 2, 4)
HAND_OVER = 180e-6  # seconds of an exchange, from the GPU to the CPU and back
_BITS = quantized_bits(4, 64)
WIDTHS = Widths(_BITS, _BITS, _BITS, embedding=_BITS)  # of attention, dense MLP, experts, vocabulary
EXPERTS = {"GatherMM", "GatherQMM"}


@dataclass(frozen=True)
class Link:
    """Name, bytes a second, and seconds until the first one arrives; assumed, see docs/distributed.md."""

    name: str
    rate: float
    latency: float


LINKS = (
    Link("TB5 RDMA", 6.3e9, 30e-6),
    Link("TB bridge, TCP", 2.5e9, 300e-6),
    Link("10GbE", 1.15e9, 300e-6),
)
SHOWN = ("M3 Pro", "M4 Max", "M3 Ultra", "M5 Max")  # beginnings of chips' names


@dataclass(frozen=True)
class RankWork:
    """A rank's share of a step: what its graph computes, how often it exchanges, and how much it sends."""

    work: Work
    exchanges: int
    sent: int

    @property
    def experts(self) -> int:
        return sum(flops for name, flops in self.work.flops.items() if name in EXPERTS)

    @property
    def others(self) -> int:
        return sum(self.work.flops.values()) - self.experts


class _Group:
    """Stands in for MLX's group."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


class _Counting(Share):
    """A share whose exchanges are noted, and bring back this rank's own rows in the place of the others'."""

    def __init__(self, rank: int, size: int):
        super().__init__(_Group(rank, size))  # type: ignore[arg-type]  # nothing is sent
        self.sent: list[int] = []

    def all_gather(self, x: mx.array) -> mx.array:
        self.sent.append(x.nbytes)
        return mx.concatenate([x] * self.size)


def rank_work(config: ModelConfig, rank: int, size: int, prefix: int) -> RankWork:
    """Counts a step of one rank in the middle of a canvas, behind so many tokens."""
    model = DiffusionGemma(config)
    known = tree_flatten(model.parameters())
    names, arrays = [name for name, _ in known], [array.astype(mx.bfloat16) for _, array in known]
    shape = (1, config.canvas_length)
    share = None if size == 1 else _Counting(rank, size)
    kept = [
        mx.zeros((1, layer.num_key_value_heads, min(prefix, (layer.window or prefix + 1) - 1), layer.head_dim))
        for layer in config.layers
    ]

    def step(canvas: mx.array, soft: mx.array, u: mx.array, *rest: mx.array) -> list[mx.array]:
        model.update(tree_unflatten(list(zip(names, rest[len(kept) :], strict=True))))
        model.share = share
        cache = model.make_cache()
        for layer, own in zip(cache.layers, rest, strict=False):
            layer.append(own, own)
        cache.length = prefix
        denoiser = make_denoiser(model, cache)
        found = denoiser.finish(denoiser.begin(canvas, soft), Query(0.7, u, wants_soft=True))
        assert found.soft is not None  # they were wanted
        return [found.argmax, found.proposal, found.entropy, found.log_p, found.soft]

    inputs = mx.zeros(shape, mx.int32), mx.zeros((*shape, config.hidden_size), mx.bfloat16), mx.zeros(shape)
    caches = [own.astype(mx.bfloat16) for own in kept]
    # MLX exports no copies, which compute nothing
    with mock.patch.object(cpu, "on_cpu", return_value=False), mock.patch.object(mx, "contiguous", lambda x: x):
        work = count(step, *inputs, *caches, *arrays)
    sent = share.sent if share is not None else []
    return RankWork(work, len(sent), sum(sent))


def step_seconds(config: ModelConfig, chip: Chip, link: Link, ranks: list[RankWork], prefix: int) -> float:
    """Predicted: the rows of the rank with most of them, and its exchanges."""
    n = len(ranks)
    rows = -(-config.canvas_length // n)
    computed = floor_seconds(step_stages(config, WIDTHS, prefix, rows=rows, tile=TILE), chip) / OF_PEAK
    most = max(ranks, key=lambda own: own.sent)
    phases = (n - 1) * (most.exchanges * link.latency + most.sent / link.rate)
    return computed + phases + most.exchanges * HAND_OVER


def counted_table(found: dict[int, list[RankWork]]) -> str:
    lines = ["| ranks | rank | TFLOP, experts | TFLOP, others | exchanges | MB sent | MB received |"]
    lines.append("|---|---|---|---|---|---|---|")
    for n, ranks in found.items():
        for rank, own in enumerate(ranks):
            flops = f"{own.experts / 1e12:.3f} | {own.others / 1e12:.3f}"
            lines.append(
                f"| {n} | {rank} | {flops} | {own.exchanges} | {own.sent / 1e6:.1f} | {(n - 1) * own.sent / 1e6:.1f} |"
            )
    return "\n".join(lines)


def balance(ranks: list[RankWork]) -> float:
    """The largest rank's operations outside of the experts over the mean."""
    others = [own.others for own in ranks]
    return max(others) * len(others) / sum(others)


def predicted_table(config: ModelConfig, found: dict[int, list[RankWork]], prefix: int) -> str:
    heads = [f"{n} × {link.name}" for n in found if n > 1 for link in LINKS]
    lines = [f"| chip | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for chip in CHIPS:
        if chip.name.startswith(SHOWN):
            alone = step_seconds(config, chip, LINKS[0], found[1], prefix)
            gains = [
                alone / step_seconds(config, chip, link, found[n], prefix) for n in found if n > 1 for link in LINKS
            ]
            lines.append(f"| {chip.name} | {' | '.join(f'{gain:.2f} ×' for gain in gains)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.distributed", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prefix", type=int, default=1024, metavar="N", help="tokens before the canvas (default: 1024)"
    )
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args), "interrupted")


def run(args: argparse.Namespace) -> int:
    """Prints the tables."""
    config = ModelConfig.from_dict(PUBLISHED)
    found = {n: [rank_work(config, rank, n, args.prefix) for rank in range(n)] for n in RANKS}
    print(f"One denoising step of the published model, bfloat16, {args.prefix} tokens before the canvas, counted:\n")
    print(counted_table(found))
    told = ", ".join(f"{balance(ranks):.3f} with {n}" for n, ranks in found.items() if n > 1)
    print(f"\nBalance, the largest rank's operations outside of the experts over the mean: {told}")
    print("\nPREDICTIONS, not measured: a shared step against one machine alone\n")
    print(predicted_table(config, found, args.prefix))
    return 0


if __name__ == "__main__":
    sys.exit(main())
