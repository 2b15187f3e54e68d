"""The picture of the README: a Sudoku of the embedded checkpoint at four denoising steps, as docs/canvas.svg.

The temperature starts higher than the checkpoint's own, so that the canvas starts as noise; 37 steps then show what a
denoiser does: what the prompt gives is there at once, the rest is guessed, corrected (top right) and settled.

python -m benchmarks.picture
"""

from pathlib import Path

from mlx_dgemma import Engine, GenerationConfig, Request
from mlx_dgemma.report.svg import draw
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import Trace

PATH = Path(__file__).parents[1] / "docs" / "canvas.svg"
REQUEST = Request("sudoku .3..12.3........", settings=GenerationConfig(t_max=2.2), seed=1)
COLUMNS = 4


def run() -> Trace:
    """The run it shows."""
    engine = Engine.load()
    recorder = Recorder(engine, REQUEST)
    for _ in record(engine.stream(REQUEST), recorder):
        pass
    return recorder.trace()


def picture() -> str:
    """The SVG."""
    return draw(run(), COLUMNS)


def main() -> None:
    PATH.write_text(picture(), encoding="utf-8")
    print(PATH.relative_to(Path.cwd()) if PATH.is_relative_to(Path.cwd()) else PATH)


if __name__ == "__main__":
    main()
