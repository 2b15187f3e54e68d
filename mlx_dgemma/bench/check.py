"""Is this checkpoint sound, and does this machine compute it rightly? A finished canvas must stay what it is.

A canvas is denoised until it is done, as always, and shown to the denoiser once more. A sound file keeps nearly all of
its tokens; damaged weights and wrong kernels do not, however fluent they are.
"""

from dataclasses import dataclass

from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.vocabulary import Query
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import host, memory
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.request import Request

LEAST = 0.9  # share of the tokens that must stay
EMBEDDED, REAL = "spell 1842", "Explain in three sentences why the sky is blue."


@dataclass(frozen=True)
class Soundness:
    """What one more step did to a finished canvas: how many of its tokens stayed, after so many steps."""

    kept: int
    tokens: int
    steps: int

    @property
    def is_sound(self) -> bool:
        return self.kept >= LEAST * self.tokens


def check(engine: Engine, seed: int = 0) -> Soundness:
    """Denoises a first canvas and looks at it once more.

    Raises:
        DGemmaError: a checkpoint that cannot be asked a question.
    """
    if engine.tokenizer is None:
        raise DGemmaError("--check asks a question, and the checkpoint has no tokenizer files; add tokenizer.json")
    prompt = EMBEDDED if engine.checkpoint == "embedded" else REAL
    run = engine.prepare(Request(prompt, seed=seed))
    cache = run.prefix().cache
    denoiser, shape = ModelDenoiser(run.model, cache), (1, run.model.config.canvas_length)
    with memory.explained(), memory.wired(run.model.nbytes + cache.nbytes):
        *_, last = denoise_canvas(denoiser, run.settings, run.noise(), shape)  # one step at least
        again = denoiser.finish(denoiser.begin(last.draft, None), Query(last.temperature, None, wants_soft=False))
        same = again.argmax == last.draft
        memory.finish([same])
    return Soundness(sum(host.flags(same[0])), shape[1], last.step)
