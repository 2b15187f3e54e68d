"""python -m mlx_dgemma: the command that people mean, `mlx_dgemma.generate`."""

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import sys

from mlx_dgemma.generate import main

if __name__ == "__main__":
    sys.exit(main())
