"""Peak memory of a long prompt beyond weights and prefix cache: it must not grow with the square of the length.

python -m benchmarks.prefill_memory
"""

import argparse
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from benchmarks.models import config_dict, write_random
from mlx_dgemma import GenerationConfig, load
from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.model.prefill import prefill

TINY = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16_384, 65_536])
    args = parser.parse_args()
    print("| prompt | prefix cache, MB | prefill beyond it, MB | canvas beyond it, MB | whole scores, MB | seconds |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        content = config_dict(256, **TINY)
        model, _ = load(write_random(Path(folder), content))
        heads = content["text_config"]["num_attention_heads"]
        for length in args.lengths:
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            began, cache = time.perf_counter(), model.make_cache()
            prefill(model, mx.random.randint(0, TINY["vocab_size"], (1, length)), cache)
            seconds = time.perf_counter() - began
            encoded = mx.get_peak_memory() - before - cache.nbytes
            mx.reset_peak_memory()
            config = GenerationConfig(max_denoising_steps=2)
            list(denoise_canvas(ModelDenoiser(model, cache), config, SeededNoise(0, 2048), (1, 256)))
            canvas = mx.get_peak_memory() - before - cache.nbytes
            figures = (cache.nbytes, encoded, canvas, 4 * heads * length * length)
            print(f"| {length} | {' | '.join(f'{f / 1e6:.0f}' for f in figures)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
