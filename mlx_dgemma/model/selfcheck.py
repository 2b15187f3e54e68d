"""Kernels that only a GPU takes, each compared with its plain twin on a small input when a model is loaded.

They have been wrong before, at some sizes, on some chips, in some versions of MLX; the answers are then fluent and bad.
The comparison takes milliseconds, once a process. A fused attention kernel is compared where it is used (`scores`).
"""

import functools
from collections.abc import Callable, Iterator

import mlx.core as mx

from mlx_dgemma.model import cpu, fused, trust

TOLERANCE = 0.02  # of the range of the twin's result, for half precision
WIDTH, ROWS, EXPERTS = 128, 192, 4
FORMATS = ((64, 4), (64, 8))  # group size and bits


def check_kernels() -> None:
    """Finds out, once a process, which kernels are not to be trusted on this GPU; a CPU takes none of them."""
    if not cpu.on_cpu():
        _check()


@functools.cache
def _check() -> None:
    trust.distrust(set())
    trust.distrust({name for name, differs in comparisons() if differs()})


def comparisons() -> Iterator[tuple[str, Callable[[], bool]]]:
    """Each kernel path by name, and whether it differs from its twin."""
    for name in fused.HELPERS:
        yield name, functools.partial(_helper_differs, name)
    yield "sliced products", _sliced_products_differ
    yield "sorted experts", _sorted_experts_differ


def _differ(one: mx.array, other: mx.array) -> bool:
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    reach = mx.maximum(mx.abs(other).max(), 1e-6)
    return not (mx.abs(one - other).max() <= TOLERANCE * reach).item()  # so that NaN differs


def _normal(shape: tuple[int, ...], seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def _helper_differs(name: str) -> bool:
    plain, compiled, arguments = fused.HELPERS[name]
    # positive, as sums of probabilities, temperatures and caps are
    arrays = [mx.random.uniform(0.1, 1, shape, key=mx.random.key(seed)) for seed, shape in enumerate(arguments)]
    one, other = compiled(*arrays), plain(*arrays)
    pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
    return any(_differ(a, b) for a, b in pairs)


def _sliced_products_differ() -> bool:
    """`quantized_matmul` in both directions on some rows of a table, as the walk over the vocabulary asks for it."""
    table, x, weights = _normal((3 * ROWS, WIDTH), 0), _normal((5, WIDTH), 1), _normal((5, ROWS), 2)
    for group_size, bits in FORMATS:
        packed, scales, biases = mx.quantize(table, group_size, bits)
        plain = mx.dequantize(packed, scales, biases, group_size, bits)[ROWS : 2 * ROWS]
        block, scales, biases = (a[ROWS : 2 * ROWS] for a in (packed, scales, biases))
        scores = mx.quantized_matmul(x, block, scales, biases, True, group_size, bits)
        mixed = mx.quantized_matmul(weights, block, scales, biases, False, group_size, bits)
        if _differ(scores, x @ plain.T) or _differ(mixed, weights @ plain):
            return True
    return False


def _sorted_experts_differ() -> bool:
    """Gathered products over rows that are sorted by expert, plain and quantized."""
    weights, x = _normal((EXPERTS, ROWS, WIDTH), 4), _normal((97, 1, WIDTH), 5)
    experts = mx.sort(mx.random.randint(0, EXPERTS, (97,), key=mx.random.key(6)))
    plain = x @ weights[experts].swapaxes(-1, -2)
    if _differ(mx.gather_mm(x, weights.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=True), plain):
        return True
    for group_size, bits in FORMATS:
        packed, scales, biases = mx.quantize(weights, group_size, bits)
        plain = x @ mx.dequantize(packed, scales, biases, group_size, bits)[experts].swapaxes(-1, -2)
        gathered = mx.gather_qmm(
            x, packed, scales, biases, rhs_indices=experts, transpose=True, group_size=group_size, bits=bits,
            sorted_indices=True,
        )  # fmt: skip
        if _differ(gathered, plain):
            return True
    return False
