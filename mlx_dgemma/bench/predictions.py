"""What fewer active rows are worth, and predicted tokens a second by chip: arithmetic on the roofline, no measurement.

Work is counted in full-step equivalents: the operations of one step over a whole canvas. What the published model needs
at the reference's settings is recorded (reffdev/diffusiongemma, bf16, by kind of text): its mean number of steps, and
the encoding of the committed canvas, for each canvas.

A share of that work can be saved in two ways that differ in time: by fewer full steps, when time falls with work, or by
fewer rows in as many steps, when it falls less, as weights are read all the same and experts compute part-empty tiles.
A prediction tells both.
"""

from collections.abc import Sequence

from mlx_dgemma.bench.chips import CHIPS, Chip
from mlx_dgemma.bench.roofline import Widths, floor_seconds, step_stages
from mlx_dgemma.diffusion.work import COMMIT
from mlx_dgemma.model.config import ModelConfig

FRACTIONS = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 1 / 8)  # of a canvas: 256, 192, 128, 96, 64 and 32 rows
REFERENCE_STEPS = {"code": 14.2, "chat": 18.7, "prose": 28.2}  # per full canvas of REFERENCE_CANVAS tokens
REFERENCE_CANVAS = 256
TILE = 16  # rows of an expert multiplied at a time; runners on Macs have 16 to 32
OF_PEAK = 0.4  # what runners on M3 reach of the floor (docs/performance.md)


def row_counts(canvas: int) -> list[int]:
    """Numbers of active rows to look at, from all of a canvas downwards."""
    return sorted({max(1, round(canvas * fraction)) for fraction in FRACTIONS}, reverse=True)


def reference_work(text: str) -> float:
    """Full-step equivalents per committed token of a kind of text, at the reference's settings."""
    return (REFERENCE_STEPS[text] + COMMIT) / REFERENCE_CANVAS


def step_ratio(config: ModelConfig, widths: Widths, prefix: int, chip: Chip, rows: float, tile: int = 1) -> float:
    """Time of a step with so many rows over that of a full one, at the floor; between whole rows, linear."""
    low = int(rows)
    times = [
        floor_seconds(step_stages(config, widths, prefix, rows=n, tile=tile), chip)
        for n in (config.canvas_length, max(1, low), max(1, min(low + 1, config.canvas_length)))
    ]
    return (times[1] + (rows - low) * (times[2] - times[1])) / times[0]


def rows_table(config: ModelConfig, widths: Widths, prefix: int) -> str:
    """Markdown: the floor of a step by active rows, as a share of a full step's; with whole tiles in brackets."""
    counts = row_counts(config.canvas_length)
    shares = [f"{rows / config.canvas_length:.2g}" for rows in counts]
    lines = [_line("active rows", *map(str, counts)), _line(*["---"] * (len(counts) + 1))]
    lines.append(_line("share of the rows", *shares))
    for chip in CHIPS:
        cells = [
            f"{step_ratio(config, widths, prefix, chip, rows):.2f}"
            f" ({step_ratio(config, widths, prefix, chip, rows, TILE):.2f})"
            for rows in counts
        ]
        lines.append(_line(chip.name, *cells))
    return "\n".join(lines)


def predicted(full_seconds: float, work: float, slowdown: float = 1.0) -> float:
    """Tokens a second at so many full-step equivalents per committed token.

    Args:
        full_seconds: of a full step.
        work: full-step equivalents per committed token.
        slowdown: time per work over that of full steps; 1 where whole steps are saved.
    """
    return 1 / (work * full_seconds * slowdown)


def prediction_table(config: ModelConfig, widths: Widths, prefix: int, shares: Sequence[float]) -> str:
    """Markdown: predicted tokens a second by chip and kind of text, at shares of the reference's work per token."""
    kinds = list(REFERENCE_STEPS)
    heads = [f"{kind} at {share:.2g}" for kind in kinds for share in shares]
    lines = [_line("chip", *heads), _line(*["---"] * (len(heads) + 1))]
    works = [f"{share * reference_work(kind):.3f}" for kind in kinds for share in shares]
    lines.append(_line("full steps per token", *works))
    for chip in CHIPS:
        full = floor_seconds(step_stages(config, widths, prefix, tile=1), chip) / OF_PEAK
        slow = {s: step_ratio(config, widths, prefix, chip, s * config.canvas_length, TILE) / s for s in shares}
        cells = [_range(full, share * reference_work(kind), slow[share]) for kind in kinds for share in shares]
        lines.append(_line(chip.name, *cells))
    return "\n".join(lines)


def page(config: ModelConfig, widths: Widths, prefix: int, shares: Sequence[float]) -> str:
    """Both tables under their headings."""
    return "\n\n".join(
        [
            f"A step with fewer active rows, floor over that of a full step (with experts in tiles of {TILE} rows)",
            rows_table(config, widths, prefix),
            f"PREDICTIONS, not measured: tokens/s at {OF_PEAK:.0%} of the floor, by share of the published model's "
            "work per token;\nwhere two are given, the work is saved by fewer rows to by fewer steps",
            prediction_table(config, widths, prefix, shares),
        ]
    )


def _range(full: float, work: float, slowdown: float) -> str:
    low, high = (_rate(predicted(full, work, s)) for s in (max(1.0, slowdown), 1.0))
    return high if low == high else f"{low}–{high}"


def _rate(rate: float) -> str:
    return f"{rate:,.1f}" if rate < 10 else f"{rate:,.0f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
