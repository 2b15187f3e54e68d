"""Apple's chips in the two numbers of a roofline: what memory delivers and what the GPU multiplies. No heavy imports.

Memory bandwidth is Apple's own figure for the largest GPU of each chip. Apple publishes no GPU clock and no float16
peak: clocks are what others have measured or inferred, and the peak is cores · operations per core and cycle · clock.

M1 to M4: 128 ALUs a core, each one fused multiply-add (2 operations) a cycle, float16 no faster than float32
(philipturner/metal-benchmarks). M5: a neural accelerator in each core, 1,024 float16 operations a cycle, and a clock of
1.75 GHz: both estimated from microbenchmarks of the A19 by T. Zakharko ("Investigating the GPU Neural Accelerators on
Apple A19/M5", 2025); marked as estimates.
"""

from dataclasses import dataclass

ALU_OPERATIONS = 128 * 2  # per core and cycle
ACCELERATOR_OPERATIONS = 1024  # per core and cycle, float16


@dataclass(frozen=True)
class Chip:
    """What bounds a computation; an Apple chip, or a machine that was measured.

    Attributes:
        name: for a table.
        gigabytes_per_second: memory bandwidth, 1e9 bytes.
        teraflops: peak of a matrix product in the model's float type, 1e12 operations a second.
        is_estimate: whether the peak rests on a guess about the hardware, not only about its clock.
    """

    name: str
    gigabytes_per_second: float
    teraflops: float
    is_estimate: bool = False


def _shaders(name: str, cores: int, gigahertz: float, gigabytes_per_second: float) -> Chip:
    return Chip(name, gigabytes_per_second, cores * ALU_OPERATIONS * gigahertz / 1000)


def _accelerators(name: str, cores: int, gigahertz: float, gigabytes_per_second: float) -> Chip:
    return Chip(name, gigabytes_per_second, cores * ACCELERATOR_OPERATIONS * gigahertz / 1000, is_estimate=True)


# name, GPU cores, GHz, GB/s
CHIPS: tuple[Chip, ...] = (
    _shaders("M1", 8, 1.278, 68),
    _shaders("M1 Pro", 16, 1.296, 200),
    _shaders("M1 Max", 32, 1.296, 400),
    _shaders("M1 Ultra", 64, 1.296, 800),
    _shaders("M2", 10, 1.398, 100),
    _shaders("M2 Pro", 19, 1.398, 200),
    _shaders("M2 Max", 38, 1.398, 400),
    _shaders("M2 Ultra", 76, 1.398, 800),
    _shaders("M3", 10, 1.398, 100),
    _shaders("M3 Pro", 18, 1.398, 150),
    _shaders("M3 Max", 40, 1.398, 400),
    _shaders("M3 Ultra", 80, 1.398, 819),
    _shaders("M4", 10, 1.578, 120),
    _shaders("M4 Pro", 20, 1.578, 273),
    _shaders("M4 Max", 40, 1.578, 546),
    _accelerators("M5", 10, 1.75, 153),
    _accelerators("M5 Pro", 20, 1.75, 307),
    _accelerators("M5 Max", 40, 1.75, 614),
)
