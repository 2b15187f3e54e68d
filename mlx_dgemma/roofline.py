"""python -m mlx_dgemma.roofline: the tables of `bench.roofline` for a checkpoint."""

import sys

from mlx_dgemma.bench.roofline import main

if __name__ == "__main__":
    sys.exit(main())
