"""The steps of the README's picture in figures, for docs/how-it-works.md: what each step accepted and how sure it was.

python -m benchmarks.story
"""

import numpy as np

from benchmarks.picture import COLUMNS, run
from mlx_dgemma.trace.trace import Trace

SHOWN = 8  # steps of the table, spread over the run
CELLS = COLUMNS * COLUMNS


def table(trace: Trace) -> str:
    """A line a step: temperature, tokens accepted, mean entropy, mean entropy of the 16 cells, and the cells."""
    steps = len(trace.step)
    chosen = np.unique(np.linspace(0, steps - 1, SHOWN).round().astype(int))
    lines = ["| step | temperature | accepted | mean entropy | of the cells | draft |", "|---|---|---|---|---|---|"]
    for s in chosen:
        cells = "".join(trace.pieces[int(token)] for token in trace.draft[s, 0, :CELLS])
        lines.append(
            f"| {trace.step[s]} | {trace.temperature[s]:.2f} | {trace.accepted[s, 0].sum()} of "
            f"{trace.accepted.shape[2]} | {trace.mean_entropy[s]:.4f} | {trace.entropy[s, 0, :CELLS].mean():.4f} | "
            f"`{cells}` |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(run()))
