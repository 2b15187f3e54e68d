"""How long the first answer takes: `dgemma-generate` on the embedded checkpoint, from start to exit.

    pip install mlx-lm && python -m benchmarks.startup

Beside it, what `import mlx_lm.tokenizer_utils` alone takes, which every command that builds on mlx-lm pays first (it
imports transformers, and torch where that is installed). Whole processes in turn, and the ratio of each pair.
"""

import statistics
import subprocess
import sys
import time

from mlx_dgemma.terminal.cli import Parser, exit_code, require

ANSWER = [sys.executable, "-m", "mlx_dgemma.generate", "--prompt", "spell 1842", "--quiet"]
PARTS = {
    "import mlx_lm.tokenizer_utils": [sys.executable, "-c", "import mlx_lm.tokenizer_utils"],
    "dgemma-generate, first answer": ANSWER,
    "  of that: python": [sys.executable, "-c", "pass"],
    "  of that: with mlx, mlx.nn, numpy": [sys.executable, "-c", "import mlx.core, mlx.nn, numpy"],
    "  of that: and the model loaded": [sys.executable, "-c", "from mlx_dgemma import Engine; Engine.load()"],
    "dgemma-generate --help": [*ANSWER[:3], "--help"],
}


def seconds(command: list[str]) -> float:
    """Of a whole process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def run(repeat: int) -> int:
    """Prints the table, a row as medians and as the median ratio to the first row."""
    require("mlx-lm")
    for command in PARTS.values():
        seconds(command)  # once, so that files are in memory
    rounds = [[seconds(command) for command in PARTS.values()] for _ in range(repeat)]
    print("| process | seconds | ratio |\n|---|---|---|")
    for i, name in enumerate(PARTS):
        ratio = statistics.median(times[i] / times[0] for times in rounds)
        print(f"| {name} | {statistics.median(times[i] for times in rounds):.2f} | {ratio:.2f} |")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="rounds (default: 7)")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args.repeat), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
