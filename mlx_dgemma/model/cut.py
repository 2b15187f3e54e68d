"""Which part of every weight each of N ranks takes in tensor parallelism: pure arithmetic, no arrays.

    attention    whole query heads, and the key-value heads that they read; where there are fewer of these than ranks,
                 several ranks have the same one
    MLP          inner columns, in whole groups of the quantization: a group that is cut has no scale
    experts      the same, of every expert; by expert, shapes would depend on the data
    vocabulary   rows
    all else     whole: router, norms, scalars, and self-conditioning, whose sums would cost more to exchange

704 are 11 groups of 64, which two ranks take as 6 and 5; the dense MLP's groups go to those who have less of the
experts, and who has more of these changes from layer to layer, so that ranks do and hold the same in all.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.config import LayerConfig, ModelConfig

ROWS = 16  # of the vocabulary, that stay together
UNIT = 32  # inner columns that stay together where nothing is quantized, if they divide evenly
_PART = re.compile(r"model\.decoder\.layers\.(\d+)\.(self_attn|mlp|experts)\.(\w+_proj)\.\w+")


@dataclass(frozen=True)
class Units:
    """What must not be cut in one layer: group sizes of the matrices that are cut by input columns, 1 for floats."""

    heads: int = 1  # of o_proj
    dense: int = 1  # of the MLP's down_proj
    experts: int = 1  # of the experts' down_proj


@dataclass(frozen=True)
class Slice:
    """Ranges along an axis, in elements out of `whole`."""

    axis: int
    ranges: tuple[range, ...]
    whole: int

    def within(self, stored: int) -> list[range]:
        """The same along an axis that stores so many: words of packed elements, or scales of groups."""
        return [range(own.start * stored // self.whole, own.stop * stored // self.whole) for own in self.ranges]


@dataclass(frozen=True)
class LayerCut:
    """One rank's heads and inner columns of one layer."""

    heads: range
    kv_heads: range
    dense: range
    experts: range


@dataclass(frozen=True)
class Cut:
    """What one rank takes.

    Attributes:
        config: of the whole model.
        rank: which one.
        layers: of each layer.
        everyones_rows: of the vocabulary, by rank.
    """

    config: ModelConfig
    rank: int
    layers: tuple[LayerCut, ...]
    everyones_rows: tuple[range, ...]

    @property
    def rows(self) -> range:
        """Of the vocabulary."""
        return self.everyones_rows[self.rank]

    def configs(self) -> list[tuple[ModelConfig, LayerConfig]]:
        """What the layers of this rank are built from."""
        return [
            (
                replace(
                    self.config,
                    num_attention_heads=len(own.heads),
                    intermediate_size=len(own.dense),
                    moe_intermediate_size=len(own.experts),
                ),
                replace(layer, num_key_value_heads=len(own.kv_heads)),
            )
            for own, layer in zip(self.layers, self.config.layers, strict=True)
        ]

    def part(self, target: str) -> Slice | None:
        """What is taken of the parameter of this name; None for all of it."""
        if target.startswith("model.decoder.embed_tokens."):
            return Slice(0, (self.rows,), self.config.vocab_size)
        match = _PART.fullmatch(target)
        if match is None:
            return None
        own, layer = self.layers[int(match[1])], self.config.layers[int(match[1])]
        if match[2] == "self_attn":
            is_query = match[3] in ("q_proj", "o_proj")
            heads, d = own.heads if is_query else own.kv_heads, layer.head_dim
            count = self.config.num_attention_heads if is_query else layer.num_key_value_heads
            return Slice(int(match[3] == "o_proj"), (range(heads.start * d, heads.stop * d),), count * d)
        if match[2] == "mlp":
            return Slice(int(match[3] == "down_proj"), (own.dense,), self.config.intermediate_size)
        inner, columns = self.config.moe_intermediate_size, own.experts
        if match[3] == "down_proj":
            return Slice(2, (columns,), inner)
        ups = range(inner + columns.start, inner + columns.stop)
        return Slice(1, (columns, ups), 2 * inner)  # gate rows first


def cuts(config: ModelConfig, units: Sequence[Units], size: int) -> list[Cut]:
    """Of each rank.

    Args:
        config: of the whole model.
        units: of each layer.
        size: how many ranks.

    Raises:
        DGemmaError: the model has no such parts, and for how many ranks it has.
    """
    problem = _problem(config, units, size)
    if problem is not None:
        fitting = [n for n in range(1, config.num_attention_heads + 1) if _problem(config, units, n) is None]
        told = ", ".join(map(str, fitting)) or "no number"
        raise DGemmaError(f"{size} ranks cannot share this model's weights: {problem}; {told} can")
    rows = _ranges(_even(-(-config.vocab_size // ROWS), size), ROWS, config.vocab_size)
    by_layer = [
        _layer(config, layer, own, size, i) for i, (layer, own) in enumerate(zip(config.layers, units, strict=True))
    ]
    return [Cut(config, rank, tuple(layer[rank] for layer in by_layer), tuple(rows)) for rank in range(size)]


def _problem(config: ModelConfig, units: Sequence[Units], size: int) -> str | None:
    """Why so many ranks cannot share its weights."""
    heads = config.num_attention_heads
    if size < 1 or heads % size:
        return f"it has {heads} query heads"
    for i, (layer, own) in enumerate(zip(config.layers, units, strict=True)):
        kv_heads = layer.num_key_value_heads
        if kv_heads % size and size % kv_heads:
            return f"layer {i} has {kv_heads} key-value heads"
        if heads // size * layer.head_dim % own.heads:
            return f"layer {i} has groups of {own.heads} in o_proj, and heads of {layer.head_dim}"
        for name, inner, unit in _inner(config, own):
            if inner // unit < size:
                return f"layer {i} has {inner // unit} groups of {unit} columns in its {name}"
    if -(-config.vocab_size // ROWS) < size:
        return f"it has a vocabulary of {config.vocab_size}"
    return None


def _inner(config: ModelConfig, units: Units) -> list[tuple[str, int, int]]:
    """MLP and experts: their inner columns, and how many stay together."""
    sizes = [("MLP", config.intermediate_size, units.dense), ("experts", config.moe_intermediate_size, units.experts)]
    return [(name, inner, math.gcd(inner, UNIT) if unit == 1 else unit) for name, inner, unit in sizes]


def _layer(config: ModelConfig, layer: LayerConfig, units: Units, size: int, index: int) -> list[LayerCut]:
    """Every rank's part of a layer."""
    per_rank, per_kv_head = config.num_attention_heads // size, config.num_attention_heads // layer.num_key_value_heads
    heads = [range(rank * per_rank, (rank + 1) * per_rank) for rank in range(size)]
    kv_heads = [range(own.start // per_kv_head, (own.stop - 1) // per_kv_head + 1) for own in heads]
    (_, dense, dense_unit), (_, inner, unit) = _inner(config, units)
    few = _even(inner // unit, size)
    few = [few[(rank + index) % size] for rank in range(size)]
    loads = [count * unit * config.top_k_experts for count in few]
    many = _dealt(dense // dense_unit, dense_unit, loads)
    parts = zip(heads, kv_heads, _ranges(many, dense_unit, dense), _ranges(few, unit, inner), strict=True)
    return [LayerCut(*own) for own in parts]


def _even(count: int, size: int) -> list[int]:
    """Whole numbers that sum to `count`, larger ones first."""
    return [count // size + (rank < count % size) for rank in range(size)]


def _dealt(count: int, unit: int, loads: Sequence[int]) -> list[int]:
    """How many of `count` units each gets who has these loads: one, and the rest whoever has the least."""
    given, sums = [1] * len(loads), [load + unit for load in loads]
    for _ in range(count - len(loads)):
        least = sums.index(min(sums))
        given[least], sums[least] = given[least] + 1, sums[least] + unit
    return given


def _ranges(counts: Sequence[int], unit: int, whole: int) -> list[range]:
    """One after another, so many units each; the last unit may be short."""
    ends = [min(end * unit, whole) for end in accumulate(counts)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
