"""This machine's own roofline: memory bandwidth and matrix products, measured with MLX."""

import time
from collections.abc import Callable

import mlx.core as mx

from mlx_dgemma.bench.chips import Chip
from mlx_dgemma.model import cpu

RUNS = 5  # the best counts: a bound is asked for
BYTES_CPU, BYTES_GPU = 128 << 20, 512 << 20  # of one array: well beyond any cache
WIDTH = 4096  # of a matrix that a vector is multiplied with
SIZE_CPU, SIZE_GPU = 1024, 4096  # of a square product: long enough to hide its start


def measure(dtype: mx.Dtype) -> Chip:
    """Bandwidth and TFLOP/s of a square product, in the type that the model computes in."""
    size = SIZE_CPU if cpu.on_cpu() else SIZE_GPU
    a, b = _normal((size, size), dtype, 0), _normal((size, size), dtype, 1)
    teraflops = 2 * size**3 / best(lambda: a @ b) / 1e12
    measured = Chip("this machine", max(_sum_bandwidth(dtype), _product_bandwidth(dtype)), teraflops)
    mx.clear_cache()
    return measured


def _sum_bandwidth(dtype: mx.Dtype) -> float:
    """GB/s of an elementwise sum, which reads one array and writes another."""
    x = mx.zeros(_bytes() // dtype.size, dtype)
    one = mx.array(1, dtype)
    mx.eval(x, one)
    return 2 * x.nbytes / best(lambda: x + one) / 1e9


def _product_bandwidth(dtype: mx.Dtype) -> float:
    """GB/s of a matrix times a vector, which only reads: on a CPU, writing to fresh memory is much slower."""
    x, v = mx.ones((_bytes() // dtype.size // WIDTH, WIDTH), dtype), mx.ones((WIDTH,), dtype)
    mx.eval(x, v)
    return x.nbytes / best(lambda: x @ v) / 1e9


def _bytes() -> int:
    return BYTES_CPU if cpu.on_cpu() else BYTES_GPU


def _normal(shape: tuple[int, ...], dtype: mx.Dtype, seed: int) -> mx.array:
    x = mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)
    mx.eval(x)
    return x


def best(work: Callable[[], mx.array]) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    mx.eval(work())
    return min(seconds(lambda: mx.eval(work())) for _ in range(RUNS))


def seconds(work: Callable[[], None]) -> float:
    """How long it takes; the work waits for its own results."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
