"""What an image costs: its operations counted, and tower and prefill measured.

FLOP     2 per multiply-add of every matrix product, as in `roofline`; patches are those of an image that fills its
         budget, which is nine for each of its tokens
"""

import math
from dataclasses import dataclass
from statistics import median

import mlx.core as mx

from mlx_dgemma.bench import machine
from mlx_dgemma.bench.roofline import VOCABULARY_STAGES, Stage, Widths, step_stages
from mlx_dgemma.model import memory
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import segments
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.text.images import BUDGETS

PREFIX, STEPS = 1024, 16  # of the request whose share is told


@dataclass(frozen=True)
class ImageCost:
    """Operations of an image, 1e12.

    Attributes:
        tokens: soft tokens, which the text model reads.
        patches: which the tower reads.
        tower: all of the tower's.
        attention: of these, products of queries, keys and values.
        prefill: of its tokens, in encoder mode.
        steps: both, in denoising steps of one canvas.
        share: both, of a request of one canvas behind PREFIX other tokens, denoised in STEPS steps.
    """

    tokens: int
    patches: int
    tower: float
    attention: float
    prefill: float
    steps: float
    share: float


@dataclass(frozen=True)
class ImageReport:
    """An image of random pixels, measured; times are medians.

    Attributes:
        tokens, patches: how large it is.
        tower_ms: from patches to features.
        prefill_ms: from features to keys and values, behind no other token.
        tower_gigaflops: operations a second of the tower, 1e9.
        tower_transient_bytes: at most while it sees, beyond its weights.
    """

    tokens: int
    patches: int
    tower_ms: float
    prefill_ms: float
    tower_gigaflops: float
    tower_transient_bytes: int


def image_grid(tokens: int, pool: int) -> tuple[int, int]:
    """Rows and columns of patches of an image that has at most so many tokens, as square as can be."""
    rows = math.isqrt(tokens)
    return rows * pool, tokens // rows * pool


def tower_stages(vision: VisionConfig, patches: int) -> tuple[Stage, Stage]:
    """The tower's products with its weights, and those in its attention; bytes are left out."""
    inner = vision.num_attention_heads * vision.head_dim
    weights = 4 * vision.hidden_size * inner + 3 * vision.hidden_size * vision.intermediate_size
    weights = vision.num_hidden_layers * weights + 3 * vision.patch_size**2 * vision.hidden_size
    scores = 2 * vision.num_hidden_layers * patches**2 * inner
    return Stage("tower's weights", 2.0 * patches * weights, 0.0), Stage("tower's attention", 2.0 * scores, 0.0)


def image_cost(config: ModelConfig, vision: VisionConfig, widths: Widths, tokens: int) -> ImageCost:
    """Operations of an image of so many tokens."""
    patches = tokens * vision.pooling_kernel_size**2
    weights, attention = tower_stages(vision, patches)
    tower, prefill = weights.flops + attention.flops, _encoded(config, widths, tokens)
    step = sum(stage.flops for stage in step_stages(config, widths, PREFIX + tokens))
    request = tower + _encoded(config, widths, PREFIX + tokens) + STEPS * step
    tera = 1e12
    return ImageCost(
        tokens, patches, tower / tera, attention.flops / tera, prefill / tera, (tower + prefill) / step,
        (tower + prefill) / request,
    )  # fmt: skip


def _encoded(config: ModelConfig, widths: Widths, tokens: int) -> float:
    """Operations of encoding so many tokens, all of which see each other; neither self-conditioning nor vocabulary."""
    left = ("self-conditioning MLP", *VOCABULARY_STAGES)
    return sum(stage.flops for stage in step_stages(config, widths, 0, tokens) if stage.name not in left)


def page(config: ModelConfig, vision: VisionConfig | None, widths: Widths) -> str:
    """The table of all budgets, under its title; nothing of a checkpoint that cannot see."""
    if vision is None or not vision.has_tokens(config.vocab_size):
        return ""
    return f"\n\nAn image, by its budget:\n\n{image_table([image_cost(config, vision, widths, n) for n in BUDGETS])}"


def image_table(costs: list[ImageCost]) -> str:
    """Markdown, a line a budget."""
    share = f"share of a request of {STEPS} steps behind {PREFIX} tokens"
    lines = [
        f"| tokens | patches | tower, TFLOP | of it attention | prefill, TFLOP | in denoising steps | {share} |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in costs:
        figures = f"{c.tower:.3g} | {c.attention:.2g} | {c.prefill:.3g} | {c.steps:.1f} | {c.share:.0%}"
        lines.append(f"| {c.tokens} | {c.patches} | {figures} |")
    return "\n".join(lines)


def measure_image(model: DiffusionGemma, tokens: int, repeat: int) -> ImageReport:
    """Shows the model random pixels, `repeat` times after one that does not count.

    Raises:
        DGemmaError: a checkpoint that cannot see.
    """
    eyes = model.require_eyes()
    vision = eyes.config
    grid = image_grid(tokens, vision.pooling_kernel_size)
    patches = mx.random.uniform(shape=(grid[0] * grid[1], 3 * vision.patch_size**2), key=mx.random.key(0))
    features = eyes.see(patches, grid)  # loads the tower
    memory.finish([patches, features])
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()

    def see() -> None:
        eyes.see(patches, grid)

    seen = [machine.seconds(see) for _ in range(1 + repeat)][1:]
    transient = max(0, mx.get_peak_memory() - before)

    def encode() -> None:
        ids = [-1] * features.shape[1]
        for _ in segments(model, ids, {-1: lambda: features}, model.make_cache()):
            pass

    encoded = [machine.seconds(encode) for _ in range(1 + repeat)][1:]
    operations = sum(stage.flops for stage in tower_stages(vision, len(patches)))
    return ImageReport(
        features.shape[1], len(patches), 1000 * median(seen), 1000 * median(encoded), operations / median(seen) / 1e9,
        transient,
    )  # fmt: skip
