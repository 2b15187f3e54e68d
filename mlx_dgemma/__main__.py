"""python -m mlx_dgemma: the command that people mean, `mlx_dgemma.generate`."""

import sys

from mlx_dgemma.generate import main

if __name__ == "__main__":
    sys.exit(main())
