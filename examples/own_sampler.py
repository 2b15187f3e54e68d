"""An acceptance rule of one's own, on the hardest Sudokus, against the published one: own_sampler.py [QUESTIONS]"""

import sys
from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma import Engine, GenerationConfig
from mlx_dgemma.diffusion.strategies import Step
from mlx_dgemma.sweep.questions import draw_questions
from mlx_dgemma.sweep.runner import ask
from mlx_dgemma.sweep.summary import score
from mlx_dgemma.tasks import HARD


@dataclass(frozen=True)
class LikelierThan:
    """Accepts every token of at least this probability, and the surest one in any case."""

    p: float

    def __call__(self, step: Step) -> mx.array:
        return (mx.exp(step.log_p) >= self.p) | (step.log_p == step.log_p.max(axis=-1, keepdims=True))


engine, questions = Engine.load(), draw_questions(HARD, 0, int(sys.argv[1]) if len(sys.argv) > 1 else 100)
for settings in (GenerationConfig(), GenerationConfig(acceptance=LikelierThan(0.9))):
    got = score(ask(engine, question, settings, seed=0) for question in questions)
    print(f"{settings.acceptance or 'published'}: {got.exact:.1%} solved, {got.steps_per_canvas:.2f} steps per canvas")
