"""What one denoising step has to compute and to read, and the time that no implementation can beat.

Plain counting from the configuration, for one canvas:

    FLOP     2 per multiply-add of every matrix product; norms, softmax, rotary embedding and other elementwise work
             are left out, as is the router's top-k
    bytes    every weight that a stage needs, once a stage, and the keys and values that attention sees, once;
             activations are left out, as if caches held them

So the floor is a bound, not a forecast. Stages follow one another: a step takes at least the sum over its stages of
max(FLOP / peak, bytes / bandwidth).

python -m mlx_dgemma.roofline --model FOLDER
"""

import argparse
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlx_dgemma.bench.chips import CHIPS, Chip
from mlx_dgemma.model.config import ModelConfig, read_config
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.terminal import signals
from mlx_dgemma.terminal.cli import Parser, exit_code

FLOAT_BITS = 16
GROUP_SIZE = 64  # of --bits: affine, with a scale and a bias per group
VOCABULARY_STAGES = ("vocabulary scores", "soft embeddings")  # after the layers; the other stages are theirs
_WORK_HELP = "work per committed token to predict for, as shares of the reference's (default: 1 0.5 0.333)"
PARTS = ("attention", "dense", "experts", "router", "self_conditioning", "embedding")


@dataclass(frozen=True)
class Stage:
    """One part of a denoising step: operations, and bytes read."""

    name: str
    flops: float
    nbytes: float

    def floor(self, chip: Chip) -> float:
        """Seconds this stage takes at least."""
        return max(self.flops / (chip.teraflops * 1e12), self.nbytes / (chip.gigabytes_per_second * 1e9))

    def is_memory_bound(self, chip: Chip) -> bool:
        """Whether reading takes longer than computing."""
        return self.nbytes / (chip.gigabytes_per_second * 1e9) > self.flops / (chip.teraflops * 1e12)


@dataclass(frozen=True)
class Widths:
    """Bits per weight of each part, scales and biases of the quantization included, and bits per cached key or value.

    A part whose modules differ has their mean.
    """

    attention: float = FLOAT_BITS
    dense: float = FLOAT_BITS
    experts: float = FLOAT_BITS
    router: float = FLOAT_BITS
    self_conditioning: float = FLOAT_BITS
    embedding: float = FLOAT_BITS
    cache: float = FLOAT_BITS

    @classmethod
    def of(cls, config: ModelConfig, names: Iterable[str] | None = None, float_bits: int = FLOAT_BITS) -> "Widths":
        """As the `quantization` dict of config.json has it.

        Args:
            config: of the checkpoint.
            names: the checkpoint's tensors by module path; modules without scales are not quantized. None takes the
                dict at its word: every module that it does not mention has its default format.
            float_bits: width of what is not quantized: scales, biases, keys and values among it.
        """
        known = None if names is None else set(names)
        weights, bits = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0)
        for module in _modules(config):
            weights[module.part] += module.weights
            bits[module.part] += module.weights * _module_bits(config.quantization, module.path, known, float_bits)
        return cls(**{part: bits[part] / weights[part] for part in PARTS}, cache=float_bits)


@dataclass(frozen=True)
class Module:
    """A weight matrix, or a stack of them, by its path in the checkpoint."""

    part: str
    path: str
    weights: int


def quantized_bits(bits: int, group_size: int, mode: str = "affine", float_bits: int = FLOAT_BITS) -> float:
    """Bits per weight of a format of `mx.quantize`: affine has a scale and a bias a group, the others 8-bit scales."""
    return bits + (2 * float_bits if mode == "affine" else 8) / group_size


def touched_experts(experts: int, picks: int) -> float:
    """Expected number of distinct experts among so many uniform, independent picks."""
    return experts * (1 - (1 - 1 / experts) ** picks)


def tiled_share(experts: int, picks: int, tile: int) -> float:
    """Rows that experts compute in whole tiles, over their picks, uniform and independent: at least 1.

    An expert with n rows computes ⌈n / tile⌉ tiles, n binomial; the rest of its last one is multiplied for nothing.
    """
    if tile == 1 or experts == 1:
        return -(-picks // tile) * tile / picks
    chance, tiles = math.log(1 / experts), 0.0
    for n in range(1, picks + 1):
        ways = math.lgamma(picks + 1) - math.lgamma(n + 1) - math.lgamma(picks - n + 1)
        tiles += -(-n // tile) * math.exp(ways + n * chance + (picks - n) * math.log1p(-1 / experts))
    return experts * tiles * tile / picks


def step_stages(
    config: ModelConfig, widths: Widths, prefix: int, canvas: int | None = None, *, rows: int | None = None,
    tile: int = 1,
) -> tuple[Stage, ...]:  # fmt: skip
    """One denoising step that gets soft embeddings and makes new ones.

    Args:
        config: sizes of the model.
        widths: bits per weight, of each part.
        prefix: tokens encoded before the canvas.
        canvas: its length in tokens; by default the model's.
        rows: how many of its positions go through body and vocabulary; by default all. Weights, keys and values are
            read as a whole all the same, but for experts that nobody picks.
        tile: rows of one expert that are multiplied at a time, full or not; 1 counts no empty ones.
    """
    c = canvas or config.canvas_length
    r = c if rows is None else rows
    weights = dict.fromkeys(PARTS, 0)
    for module in _modules(config):
        weights[module.part] += module.weights
    touched = touched_experts(config.num_experts, r * config.top_k_experts) / config.num_experts
    active = config.top_k_experts / config.num_experts
    active *= tiled_share(config.num_experts, r * config.top_k_experts, tile)

    def product(name: str, count: float, bits_per_weight: float, read: float = 1.0, used: float = 1.0) -> Stage:
        return Stage(name, 2 * r * count * used, count * bits_per_weight / 8 * read)

    return (
        product("self-conditioning MLP", weights["self_conditioning"], widths.self_conditioning),
        product("attention projections", weights["attention"], widths.attention),
        _scores("attention, sliding layers", config, (prefix, c, r), widths.cache, sliding=True),
        _scores("attention, full layers", config, (prefix, c, r), widths.cache, sliding=False),
        product("dense MLP", weights["dense"], widths.dense),
        product("router", weights["router"], widths.router),
        product("experts", weights["experts"], widths.experts, touched, active),
        *(product(name, weights["embedding"], widths.embedding) for name in VOCABULARY_STAGES),
    )


def floor_seconds(stages: Iterable[Stage], chip: Chip) -> float:
    """Seconds that a denoising step takes at least."""
    return sum(stage.floor(chip) for stage in stages)


def tokens_per_second(canvas: int, steps: float, step_seconds: float) -> float:
    """Canvas tokens a second at so many denoising steps per canvas; prefill and padding are left out."""
    return canvas / (steps * step_seconds)


def _scores(name: str, config: ModelConfig, lengths: tuple[int, int, int], bits: float, *, sliding: bool) -> Stage:
    """q kᵀ and p v of the layers of one kind; keys and values at the width of activations."""
    prefix, c, r = lengths
    flops = nbytes = 0.0
    for layer in config.layers:
        if (layer.window is not None) == sliding:
            seen = c + (prefix if layer.window is None else min(prefix, layer.window - 1))
            flops += 2 * 2 * r * config.num_attention_heads * layer.head_dim * seen
            nbytes += 2 * layer.num_key_value_heads * layer.head_dim * seen * bits / 8
    return Stage(name, flops, nbytes)


def _modules(config: ModelConfig) -> Iterator[Module]:
    """Every weight matrix of the decoder."""
    hidden, decoder = config.hidden_size, "model.decoder"
    yield Module("embedding", f"{decoder}.embed_tokens", config.vocab_size * hidden)
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield Module("self_conditioning", f"{decoder}.self_conditioning.{name}", hidden * config.intermediate_size)
    for index, layer in enumerate(config.layers):
        path = f"{decoder}.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if name == "v_proj" and not layer.has_value_projection:
                continue
            heads = config.num_attention_heads if name in ("q_proj", "o_proj") else layer.num_key_value_heads
            yield Module("attention", f"{path}.self_attn.{name}", hidden * heads * layer.head_dim)
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield Module("dense", f"{path}.mlp.{name}", hidden * config.intermediate_size)
        yield Module("router", f"{path}.router.proj", hidden * config.num_experts)
        for name, matrices in (("gate_up_proj", 2), ("down_proj", 1)):
            count = matrices * config.num_experts * hidden * config.moe_intermediate_size
            yield Module("experts", f"{path}.experts.{name}", count)


def _module_bits(quantization: dict[str, Any] | None, path: str, names: set[str] | None, float_bits: int) -> float:
    if quantization is None:
        return float_bits
    own = quantization.get(path, names is None or f"{path}.scales" in names)
    if own is False:
        return float_bits
    chosen = quantization if own is True else own
    return quantized_bits(chosen["bits"], chosen["group_size"], chosen.get("mode", "affine"), float_bits)


def stage_table(stages: tuple[Stage, ...]) -> str:
    """Markdown: GFLOP and GB by stage, with shares of the totals."""
    flops, nbytes = sum(s.flops for s in stages), sum(s.nbytes for s in stages)
    lines = ["| stage | GFLOP | share | GB | share |", "|---|---|---|---|---|"]
    for s in (*stages, Stage("**sum**", flops, nbytes)):
        shares = f"{s.flops / flops:.1%}", f"{s.nbytes / nbytes:.1%}"
        amounts = _number(s.flops / 1e9), _number(s.nbytes / 1e9)
        lines.append(f"| {s.name} | {amounts[0]} | {shares[0]} | {amounts[1]} | {shares[1]} |")
    return "\n".join(lines)


def chip_table(stages: tuple[Stage, ...], canvas: int, steps: int) -> str:
    """Markdown: the floor of a step on each chip, the share of it bound by memory, and the tokens a second at most."""
    lines = [
        f"| chip | GB/s | float16 TFLOP/s | floor, ms per step | bound by memory | tokens/s at {steps} steps |",
        "|---|---|---|---|---|---|",
    ]
    for chip in CHIPS:
        floor = floor_seconds(stages, chip)
        memory = sum(s.floor(chip) for s in stages if s.is_memory_bound(chip))
        peak = f"{chip.teraflops:.1f}{' (estimate)' if chip.is_estimate else ''}"
        rate = tokens_per_second(canvas, steps, floor)
        figures = f"{_number(1000 * floor)} | {memory / floor:.0%} | {_number(rate)}"
        lines.append(f"| {chip.name} | {chip.gigabytes_per_second:.0f} | {peak} | {figures} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if value >= 100 else max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f}"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m mlx_dgemma.roofline",
        description="FLOP and bytes of one denoising step, and its floor on each Apple chip. Reads no weights.",
    )
    add = parser.add_argument
    add("--model", metavar="M", help="checkpoint folder or hub repository (default: the embedded checkpoint)")
    add("--prefix", type=int, default=1024, metavar="N", help="tokens before the canvas (default: 1024)")
    add("--bits", type=int, choices=(4, 8, 16), help="of the experts' weights (default: as the checkpoint has them)")
    add("--work", type=float, nargs="+", default=[1.0, 0.5, 1 / 3], metavar="S", help=_WORK_HELP)
    add("--steps", type=int, default=16, metavar="N", help="denoising steps per canvas, for tokens/s (default: 16)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return exit_code(lambda: run(parse(argv)), "interrupted", ends_process=argv is None)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not all(0 < share <= 1 for share in args.work):
        parser.error("--work must be shares above 0 and at most 1")
    if args.prefix < 0 or args.steps < 1:
        parser.error("--prefix must be at least 0 and --steps at least 1")
    return args


def run(args: argparse.Namespace) -> int:
    """Prints the tables."""
    config, vision, names = _read(args.model)
    widths = Widths.of(config, names)
    if args.bits is not None:
        widths = replace(
            widths, experts=FLOAT_BITS if args.bits == FLOAT_BITS else quantized_bits(args.bits, GROUP_SIZE)
        )
    stages = step_stages(config, widths, args.prefix)
    bits = f"{widths.experts:.3g} bits per expert weight, {widths.attention:.3g} in attention"
    print(f"One denoising step: canvas {config.canvas_length}, prefix {args.prefix}, {bits}\n")
    print(stage_table(stages), end="\n\n")
    print(chip_table(stages, config.canvas_length, args.steps), end="\n\n")
    from mlx_dgemma.bench import images, predictions  # they build on this module

    print(predictions.page(config, widths, args.prefix, args.work) + images.page(config, vision, widths))
    return 0


def _read(model: str | None) -> tuple[ModelConfig, VisionConfig | None, set[str]]:
    with signals.uninterrupted():  # late, so that --help answers at once
        from mlx_dgemma.checkpoint.headers import by_target, read_headers
        from mlx_dgemma.checkpoint.loading import resolve

    folder = resolve(model)
    config, names = ModelConfig.from_file(folder / "config.json"), set(by_target(read_headers(folder)))
    return config, VisionConfig.from_dict(read_config(folder / "config.json")), names
