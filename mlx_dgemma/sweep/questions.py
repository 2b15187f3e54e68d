"""Questions with checkable answers: those of the embedded checkpoint's tasks, or the lines of a JSONL file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import read_file
from mlx_dgemma.tasks import ROWS as LESSONS
from mlx_dgemma.tasks import draw_examples as draw_lessons
from mlx_dgemma.tasks.embedded import ROWS, draw_examples
from mlx_dgemma.tasks.talks import TALK_ROWS, Talk, draw_talk_row
from mlx_dgemma.text.request import Request

QUESTIONS = (*ROWS, *(row for row in (*LESSONS, *TALK_ROWS) if row not in ROWS))  # the embedded checkpoint's first
_LINE = '{"prompt": "…", "answer": "…"}'


@dataclass(frozen=True)
class Question:
    """A prompt and what is right.

    Attributes:
        task, index: which question it is; `index` counts from 0 within the task.
        prompt: the user's last word.
        check: whether what is said (`runner.said`) is right.
        where: names the question in errors.
        talk: what the prompt ends, with its tools and whether the model thinks; None for a prompt alone.
    """

    task: str
    index: int
    prompt: str
    check: Callable[[str], bool]
    where: str
    talk: Talk | None = None

    @property
    def request(self) -> Request:
        """What an engine is asked, with the checkpoint's settings."""
        talk = self.talk
        if talk is None:
            return Request(self.prompt)
        return Request(list(talk.messages), tools=talk.tools, thinking=talk.thinking)


def draw_questions(row: str, seed: int, n: int, *, lessons: bool = False) -> list[Question]:
    """Held-out questions of one of QUESTIONS: what the embedded checkpoint has learned of it, or the whole lesson."""
    if row in TALK_ROWS:
        talks = draw_talk_row(row, seed, n)
        return [Question(row, i, talk.prompt, talk.check, f"{row} {i}", talk) for i, talk in enumerate(talks)]
    draw = draw_examples if row in ROWS and not lessons else draw_lessons
    return [
        Question(row, i, example.prompt, partial(example.task.check, example.prompt), f"{row} {i}")
        for i, example in enumerate(draw(row, seed, n))
    ]


def read_pairs(path: Path, n: int | None = None) -> list[Question]:
    """The first `n` lines (default: all) of a JSONL file of {"prompt": text, "answer": text or list of texts}.

    An answer is right if it equals one of the texts after both are stripped of white space at their ends. Blank lines
    and other keys are ignored. All lines are read and checked, also those beyond `n`.

    Raises:
        DGemmaError: an unreadable or empty file, or a bad line, named by file and line.
    """
    try:
        lines = read_file(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DGemmaError(f"--data {path}: {error.strerror}; give a JSONL file of {_LINE} lines") from None
    pairs = [(f"{path}:{i}", *_pair(line, f"{path}:{i}")) for i, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise DGemmaError(f"--data {path} has no lines; write one {_LINE} a line")
    return [
        Question(path.stem, i, prompt, partial(_is_one_of, answers), where)
        for i, (where, prompt, answers) in enumerate(pairs[:n])
    ]


def _pair(line: bytes, where: str) -> tuple[str, frozenset[str]]:
    try:
        content = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DGemmaError(f"{where}: not JSON ({first_line(error)}); write {_LINE}") from None
    if not isinstance(content, dict) or not {"prompt", "answer"} <= set(content):
        raise DGemmaError(f"{where}: needs the keys prompt and answer; write {_LINE}")
    prompt, answer = content["prompt"], content["answer"]
    if not _is_text(prompt) or not prompt.strip():
        raise DGemmaError(f"{where}: prompt must be a text that is not empty, got {prompt!r}")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(map(_is_text, answers)):
        raise DGemmaError(f"{where}: answer must be a text or a list of texts, got {answer!r}")
    return prompt, frozenset(text.strip() for text in answers)


def _is_text(value: object) -> bool:
    # JSON can spell half of a surrogate pair, which no tokenizer and no file takes
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_one_of(answers: frozenset[str], answer: str) -> bool:
    return answer.strip() in answers
