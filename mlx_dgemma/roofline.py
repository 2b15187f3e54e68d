"""python -m mlx_dgemma.roofline: the tables of `bench.roofline` for a checkpoint."""

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import sys

from mlx_dgemma.bench.roofline import main

if __name__ == "__main__":
    sys.exit(main())
