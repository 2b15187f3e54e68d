"""Run by each rank: a command line in which ranks differ in what they were given, a checkpoint or an option."""

import os
import sys

from mlx_dgemma.generate import main

rank = int(os.environ["MLX_RANK"])
*option, first, second = sys.argv[1:]
mine = (first, second)[rank]
sys.exit(main(["--distributed", "--quiet", "roman 7", *(option or ["--model"]), mine]))
