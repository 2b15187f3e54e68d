"""Where the time of a denoising step goes, measured: prefill, the layers, the vocabulary stage, the whole loop."""

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import mlx.core as mx

from mlx_dgemma.bench import machine
from mlx_dgemma.bench.environment import environment
from mlx_dgemma.bench.images import ImageReport, measure_image
from mlx_dgemma.bench.roofline import VOCABULARY_STAGES, Widths, floor_seconds, step_stages, tokens_per_second
from mlx_dgemma.bench.rows import ActiveRows, RowSteps, active_rows, measure_rows
from mlx_dgemma.checkpoint.headers import by_target, read_headers
from mlx_dgemma.checkpoint.loading import resolve
from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.diffusion.shared import make_denoiser
from mlx_dgemma.diffusion.vocabulary import Query
from mlx_dgemma.distributed.session import Session
from mlx_dgemma.distributed.speed import Speed
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import cpu, memory
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.terminal.start import load_engine

ROUNDS = 2  # of steps with fewer active rows, for each repetition


@dataclass(frozen=True)
class Report:
    """What `dgemma-bench` found; times are medians, memory is in bytes.

    Attributes:
        model: as given, or "embedded".
        dtype: of weights and activations.
        device: "gpu" or "cpu".
        prompt_length: random tokens in the prefix.
        canvas_length: tokens denoised at once.
        steps: denoising steps per canvas.
        prefill_seconds: encoding the prompt.
        prefill_tokens_per_second: the prompt's tokens over that.
        layers_ms: a forward pass through all layers, alone.
        vocabulary_ms: the walk over the vocabulary, alone: argmax, draw, entropy, soft embeddings.
        rest_ms: what is left of a step: noise, acceptance, stopping rule. Below zero where the loop overlaps stages.
        step_ms: a step of the pipelined loop, neither a canvas's first nor its last.
        tokens_per_second: canvas tokens over `steps` such steps.
        weight_bytes: all parameters.
        cache_bytes: the prefix, with room for a canvas.
        peak_bytes: at most, in prefill or loop.
        transient_bytes: at most while denoising, beyond weights and cache.
        gigabytes_per_second: of memory, measured.
        gigaflops: of a matrix product in `dtype`, measured.
        layers_floor_ms: what those two allow the layers (`roofline`).
        vocabulary_floor_ms: and the vocabulary stage.
        floor_ms: of a step, their sum; a bound as long as the weights are larger than the caches.
        percent_of_floor: floor_ms over step_ms; 100 would be perfect.
        image: an image of random pixels, seen and encoded; None if none was asked for.
        active_rows: steps that compute some rows of the canvas only, measured in turn.
        environment: what the figures depend on beside the checkpoint.
        ranks: what sharing a step with other ranks takes and gains; None for one process alone.
    """

    model: str
    dtype: str
    device: str
    prompt_length: int
    canvas_length: int
    steps: int
    prefill_seconds: float
    prefill_tokens_per_second: float
    layers_ms: float
    vocabulary_ms: float
    rest_ms: float
    step_ms: float
    tokens_per_second: float
    weight_bytes: int
    cache_bytes: int
    peak_bytes: int
    transient_bytes: int
    gigabytes_per_second: float
    gigaflops: float
    layers_floor_ms: float
    vocabulary_floor_ms: float
    floor_ms: float
    percent_of_floor: float
    image: ImageReport | None
    active_rows: tuple[ActiveRows, ...]
    environment: dict[str, str]
    ranks: Speed | None = None


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        model: checkpoint folder or hub repository; None is the embedded one.
        prompt_length: tokens.
        steps: denoising steps per canvas, at least 3: the first and the last do less than the others.
        repeat: how often everything is measured, after one run that does not count.
        seed: of prompt and noise.
        dtype, wire: how the checkpoint is loaded, see `terminal.start`.
        image_tokens: of an image at most; None measures none.
    """

    model: str | None = None
    prompt_length: int = 128
    steps: int = 8
    repeat: int = 3
    seed: int = 0
    dtype: str | None = None
    wire: bool = True
    image_tokens: int | None = None


def run_benchmark(options: Options, session: Session | None = None) -> Report:
    """Loads the model and measures, alone or with other ranks."""
    folder = resolve(options.model)
    engine = load_engine(options.model, options.dtype, wire=options.wire)
    model = engine.model
    config, dtype = model.config, model.embedding_scale.dtype
    if options.prompt_length + config.canvas_length > config.max_position_embeddings:
        limit = config.max_position_embeddings - config.canvas_length
        raise DGemmaError(
            f"a prompt of {options.prompt_length} tokens leaves no room for a canvas; take at most {limit}"
        )
    speed = None if session is None else session.attach(engine, options.model)
    chip = machine.measure(dtype)
    widths = Widths.of(config, by_target(read_headers(folder)), 8 * dtype.size)
    stages = step_stages(config, widths, options.prompt_length)
    floor = floor_seconds(stages, chip)
    vocabulary_floor = floor_seconds([s for s in stages if s.name in VOCABULARY_STAGES], chip)
    image = None
    if options.image_tokens is not None:  # what cannot see is told before anything is measured
        image = measure_image(model, options.image_tokens, options.repeat)
    weights = model.nbytes
    mx.reset_peak_memory()
    bench = _Bench(model, options)
    prefill_seconds = median([bench.prefill() for _ in range(1 + options.repeat)][1:])
    peak = mx.get_peak_memory()
    layers, vocabulary, step, most = bench.steps()
    rounds = bench.rows()
    return Report(
        model=options.model or "embedded", dtype=str(dtype).removeprefix("mlx.core."),
        device="cpu" if cpu.on_cpu() else "gpu", prompt_length=options.prompt_length,
        canvas_length=config.canvas_length, steps=options.steps,
        prefill_seconds=prefill_seconds, prefill_tokens_per_second=options.prompt_length / prefill_seconds,
        layers_ms=1000 * layers, vocabulary_ms=1000 * vocabulary, rest_ms=1000 * (step - layers - vocabulary),
        step_ms=1000 * step, tokens_per_second=tokens_per_second(config.canvas_length, options.steps, step),
        weight_bytes=weights, cache_bytes=bench.cache.nbytes, peak_bytes=max(peak, most),
        transient_bytes=max(0, most - weights - bench.cache.nbytes),
        gigabytes_per_second=chip.gigabytes_per_second, gigaflops=1000 * chip.teraflops,
        layers_floor_ms=1000 * (floor - vocabulary_floor), vocabulary_floor_ms=1000 * vocabulary_floor,
        floor_ms=1000 * floor, percent_of_floor=100 * floor / step, image=image,
        active_rows=active_rows(config, widths, options.prompt_length, chip, rounds),
        environment=environment(), ranks=speed,
    )  # fmt: skip


class _Bench:
    """A model, a random prompt, and the prefix that the last prefill left."""

    def __init__(self, model: DiffusionGemma, options: Options):
        self.model, self.options = model, options
        vocabulary = model.config.vocab_size
        self.noise = SeededNoise(options.seed, vocabulary)
        self.prompt = self.noise.tokens((1, options.prompt_length))
        self.cache = model.make_cache()
        self.shape = (1, model.config.canvas_length)

    def prefill(self) -> float:
        """Seconds to encode the prompt into an empty prefix."""
        self.cache = self.model.make_cache()
        return machine.seconds(lambda: prefill(self.model, self.prompt, self.cache))

    def steps(self) -> tuple[float, float, float, int]:
        """Median seconds of layers, vocabulary stage and a whole step, and the peak of memory in the loop.

        Canvases by stage and canvases in the loop take turns, so that a machine that slows down slows both.
        """
        layers, vocabulary, steps, peak = [], [], [], 0
        for repetition in range(1 + self.options.repeat):
            by_stage = self.stages()
            times, most = self.loop()
            peak = max(peak, most)
            if repetition:  # the first is a warm-up
                layers += [first for first, _ in by_stage]
                vocabulary += [second for _, second in by_stage]
                steps += times
        return median(layers), median(vocabulary), median(steps), peak

    def rows(self) -> list[list[float]]:
        """Seconds of steps with fewer active rows, by round."""
        steps = RowSteps(make_denoiser(self.model, self.cache), self.noise, self.shape[1])
        return measure_rows(steps, ROUNDS * self.options.repeat)

    def stages(self) -> list[tuple[float, float]]:
        """Seconds of the layers and of the vocabulary stage in the steps of a canvas, each evaluated by itself."""
        denoiser, soft, seconds = make_denoiser(self.model, self.cache), None, []
        for _ in range(self.options.steps):
            canvas, query = self.noise.tokens(self.shape), Query(0.6, self.noise.uniform(self.shape), wants_soft=True)
            mx.eval(canvas, query.u)
            began = time.perf_counter()
            hidden = denoiser.hidden(canvas, [self.cache], soft)
            memory.finish([hidden])
            between = time.perf_counter()
            found = denoiser.answer(hidden, query)
            soft = found.soft
            arrays = found.argmax, found.proposal, found.entropy, found.log_p, soft
            memory.finish([array for array in arrays if array is not None])
            seconds.append((between - began, time.perf_counter() - between))
        return seconds[1:]  # the first had no soft embeddings

    def loop(self) -> tuple[list[float], int]:
        """Seconds of the steps of a canvas as `denoise_canvas` runs them, and the peak of memory meanwhile."""
        steps = self.options.steps
        # so many equal predecessors cannot be: the canvas never stops early
        config = GenerationConfig(max_denoising_steps=steps, stability_threshold=steps)
        mx.clear_cache()
        mx.reset_peak_memory()
        canvas = denoise_canvas(make_denoiser(self.model, self.cache), config, self.noise, self.shape)
        times = [time.perf_counter() for _ in canvas]
        return [after - before for before, after in pairwise(times[:-1])], mx.get_peak_memory()
