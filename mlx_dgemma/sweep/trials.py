"""What a sweep does, one generation at a time: a trial is a question at a point of the grid, a row is its outcome."""

from dataclasses import dataclass

from mlx_dgemma.sweep.grid import Grid, Settings
from mlx_dgemma.sweep.questions import Question


@dataclass(frozen=True)
class Trial:
    settings: Settings
    question: Question


@dataclass(frozen=True)
class Outcome:
    """One generation.

    Attributes:
        task, index, prompt: of the question.
        answer, correct: what was written, and whether it is right.
        steps, canvases, tokens: denoising steps of all its canvases, and tokens of the text.
        seconds: with the prefill.
        work: full denoising steps, in operations, per token of the text (of a text without any: in all).
    """

    task: str
    index: int
    prompt: str
    answer: str
    correct: bool
    steps: int
    canvases: int
    tokens: int
    seconds: float
    work: float

    @property
    def full_steps(self) -> float:
        """In all."""
        return self.work * max(1, self.tokens)


@dataclass(frozen=True)
class Row:
    settings: Settings
    outcome: Outcome

    def answers(self, trial: Trial) -> bool:
        """Whether this is the outcome of that trial."""
        asked = (trial.settings, trial.question.task, trial.question.index, trial.question.prompt)
        return (self.settings, self.outcome.task, self.outcome.index, self.outcome.prompt) == asked


def plan_trials(grid: Grid, questions: list[Question]) -> list[Trial]:
    """Every question at every point, a question at a time: a sweep that ends early has asked all points the same."""
    by_index = sorted(questions, key=lambda question: question.index)  # stable: one of each task, then the next ones
    return [Trial(point, question) for question in by_index for point in grid.points()]
