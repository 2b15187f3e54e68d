"""What a plan comes to, in rows of at most 80 columns: parts, totals, memory to run and the Mac that has it.

Memory to run is the text weights, the prefix cache at 8,192 tokens in bfloat16, and a workspace for one denoising step.
The vision tower comes on top, in float32, once there is an image.
"""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator

from mlx_dgemma.model.config import ModelConfig

from .plan import Plan
from .recipes import FLOATS

COLUMNS = 80
PREFIX = 8192  # tokens
WORKSPACE = 300_000_000  # bytes: a block of the vocabulary stage, attention scores at this prefix, activations
TELLING = 50_000_000  # bytes, from which a figure in GB says something
GPU_SHARE = 0.75  # of a Mac's memory that its GPU may take, by default
MACS = (16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)  # GB


def cache_bytes(config: ModelConfig, tokens: int) -> int:
    """Keys and values of a prefix, bfloat16."""
    kept = [min(tokens, layer.window - 1 if layer.window else tokens) for layer in config.layers]
    return sum(2 * 2 * n * c.num_key_value_heads * c.head_dim for n, c in zip(kept, config.layers, strict=True))


def memory_to_run(plan: Plan, config: ModelConfig) -> int:
    """Bytes that generation takes."""
    _, vision = plan.by_part().get("vision", (0, 0))
    return plan.nbytes - vision + cache_bytes(config, PREFIX) + WORKSPACE


def vision_memory(plan: Plan) -> int:
    """Bytes that the first image adds: the vision weights, floats in float32."""
    outputs = (output for job in plan.jobs if job.part == "vision" for output in job.outputs)
    return sum(4 * math.prod(o.shape) if o.dtype in FLOATS.values() else o.nbytes for o in outputs)


def smallest_mac(memory: int) -> str:
    """The memory of the smallest Mac whose GPU may take so many bytes."""
    return next((f"{size} GB" for size in MACS if GPU_SHARE * size * 1e9 >= memory), "none")


def bits_per_weight(plan: Plan) -> float:
    return 8 * plan.nbytes / sum(elements for elements, _ in plan.by_part().values())


def summary(plan: Plan, config: ModelConfig) -> Iterator[str]:
    """The plan in figures: a row per part, the totals, the notes."""
    weights = sum(elements for elements, _ in plan.by_part().values())
    rows = {**plan.by_part(), "in all": (weights, plan.nbytes)}
    unit, size = ("GB", 1e9) if plan.nbytes >= 1e9 else ("MB", 1e6)
    yield f"{'part':18} {'weights':>15}   {'bits per weight':>15}   {unit:>8}"
    for part, (elements, nbytes) in rows.items():
        yield f"{part:18} {elements:15,}   {8 * nbytes / elements:15.2f}   {nbytes / size:8.3f}"
    memory = memory_to_run(plan, config)
    yield ""
    yield f"memory to run: {memory / 1e9:.1f} GB (text weights, {PREFIX:,} tokens of prefix, workspace)"
    if (vision := vision_memory(plan)) > TELLING:
        yield f"images add: {vision / 1e9:.1f} GB (the vision tower in float32, from the first image on)"
    yield f"fits a Mac with: {smallest_mac(memory)}"
    for reason, count in Counter(plan.dropped.values()).items():
        yield from _wrapped(f"dropped: {_counted(count, 'tensor')}, {reason}")
    yield from notes(plan.notes)
    yield f"{_counted(plan.tensors, 'tensor')}, {plan.nbytes:,} bytes, {_counted(len(plan.shards()), 'file')}"


def notes(texts: Iterable[str]) -> Iterator[str]:
    """A plan's notes, one for all layers that have the same."""
    kinds = Counter(re.sub(r"layers\.\d+\.", "layers.*.", text.removeprefix("model.decoder.")) for text in texts)
    for text, count in kinds.items():
        yield from _wrapped("note: " + f"{count} × " * (count > 1) + text)


def details(plan: Plan) -> Iterator[str]:
    """A line per tensor, written or dropped, and per note."""
    for job in plan.jobs:
        for output in job.outputs:
            shape = "×".join(map(str, output.shape))
            origin = f"from {job.source.origin}" if job.source.info else f"made: {job.source.made}"
            yield f"{output.name}  {output.dtype} {shape}  {output.nbytes} bytes  {job.how}  {origin}"
    yield from (f"dropped: {name}, {reason}" for name, reason in plan.dropped.items())
    yield from (f"note: {note}" for note in plan.notes)
    yield ""


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
