"""GFLOP/s of a float32 product on the CPU: what preloading OpenBLAS changes.

python -m benchmarks.blas; LD_PRELOAD=$(find /usr/lib -name libopenblas.so.0 | head -n 1) python -m benchmarks.blas
"""

import time

import mlx.core as mx

SIZE, RUNS = 1024, 5


def main() -> None:
    mx.set_default_device(mx.cpu)
    a, b = mx.random.normal((SIZE, SIZE)), mx.random.normal((SIZE, SIZE))
    mx.eval(a, b)
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        mx.eval(a @ b)
        seconds.append(time.perf_counter() - began)
    print(f"{SIZE}^3 float32: {2 * SIZE**3 / sorted(seconds)[RUNS // 2] / 1e9:.1f} GFLOP/s (median of {RUNS})")


if __name__ == "__main__":
    main()
