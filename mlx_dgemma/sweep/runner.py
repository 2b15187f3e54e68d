"""Asks a model: questions in, outcomes out. The evaluation of the embedded checkpoint asks in the same way."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.sweep.grid import Settings, text_of
from mlx_dgemma.sweep.plugins import settings_of
from mlx_dgemma.sweep.questions import Question
from mlx_dgemma.sweep.trials import Outcome, Row, Trial
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.reply import ToolCall


def said(text: str, calls: Sequence[ToolCall] = ()) -> str:
    """An answer as questions check it: the text, and a line of JSON for each call."""
    told = [json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in calls]
    return "\n".join([*([text] if text else []), *told])


def ask(engine: Engine, question: Question, settings: GenerationConfig, seed: int) -> Outcome:
    """One generation. Its noise is seeded with seed + index, the same at every point of a grid: points are paired."""
    result = engine.generate(replace(question.request, settings=settings, seed=seed + question.index))
    stats, answer = result.stats, said(result.text, result.tool_calls)
    return Outcome(
        question.task,
        question.index,
        question.prompt,
        answer,
        question.check(answer),
        stats.steps,
        stats.canvases,
        stats.tokens,
        round(stats.prompt_seconds + stats.seconds, 4),
        round(stats.work, 6),
    )


class Runner:
    """Carries out trials with one engine. Settings that a trial does not give are `base`'s, then the checkpoint's."""

    def __init__(self, engine: Engine, base: Settings, seed: int):
        self.engine, self.base, self.seed = engine, base, seed

    def check(self, trials: list[Trial]) -> None:
        """Raises DGemmaError, in the name of the point or the question, if a trial could not be carried out."""
        for settings in {str(trial.settings): trial.settings for trial in trials}.values():
            try:
                self._config(settings).over(self.engine.model.generation_config)
            except DGemmaError as error:
                raise DGemmaError(f"with {text_of(settings)}: {error}") from None
        for question in {trial.question.where: trial.question for trial in trials}.values():
            try:
                self.engine.prepare(question.request)
            except DGemmaError as error:
                raise DGemmaError(f"{question.where}: {error}") from None

    def rows(self, trials: list[Trial]) -> Iterator[Row]:
        """One row a trial, as they happen."""
        for trial in trials:
            outcome = ask(self.engine, trial.question, self._config(trial.settings), self.seed)
            yield Row(trial.settings, outcome)

    def _config(self, settings: Settings) -> GenerationConfig:
        return settings_of(self.base | settings)
