"""/v1/systemone: questions about a text, each answered with a probability for every option, read in one denoiser pass.

The shapes are those of TypeSafe's System One, which llama.cpp and transformers serve too.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.server.bodies import Fields
from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.service import Service
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.request import Request

QUESTIONS = 64
KINDS = ("choice", "score", "noul")
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        name, kind: as asked; "noul" is answered by yes or no.
        prompt: what the model reads.
        labels: what it may answer, one for each option.
        options: their names.
        descriptions: what they mean, None for those that say it themselves.
    """

    name: str
    kind: str
    prompt: str
    labels: Sequence[str]
    options: Sequence[str]
    descriptions: Sequence[str | None]

    def answer(self, p: Sequence[float]) -> dict[str, Any]:
        """The answer, from the options' probabilities; confidence is 0 where all are alike, 1 where one is sure."""
        if self.kind == "noul":
            return {"type": "noul", "noul": p[0]}
        best, n = max(range(len(p)), key=p.__getitem__), len(p)
        known = {"type": self.kind, "probabilities": dict(zip(self.options, p, strict=True))}
        if self.kind == "choice":
            return {**known, "choice": self.options[best], "confidence": max(0.0, (p[best] - 1 / n) / (1 - 1 / n))}
        spread = sum(own * abs(level - best) for level, own in enumerate(p))
        even = sum(abs(level - (n - 1) / 2) for level in range(n)) / n
        score = sum(level * own for level, own in enumerate(p))
        legend = dict(zip(self.options, self.descriptions, strict=True))
        return {**known, "score": score, "legend": legend, "confidence": max(0.0, 1 - spread / even)}


def questions_of(service: Service, body: dict[str, Any]) -> list[Question]:
    """The questions of a body.

    Raises:
        Refused: none, too many, or what is no question; 501 for images.
    """
    fields = Fields(body)
    service.named(fields.text("model"))
    if body.get("assets"):
        raise Refused(501, "assets are not supported: only texts are read", param="assets")
    state = body.get("state")
    if state is None:
        raise Refused(400, "state is missing; give what the questions are about", param="state")
    asked = fields.fields("questions")
    if asked is None or not 1 <= len(asked.values) <= QUESTIONS:
        raise Refused(400, f"questions are missing; give 1 to {QUESTIONS} by name", param="questions")
    return [_question(_said(state), name, asked) for name in asked.values]


def _question(state: str, name: str, asked: Fields) -> Question:
    own = asked.fields(name, ("type", "instructions", "criteria"))
    kind = None if own is None else own.text("type")
    if own is None or kind not in KINDS:
        raise Refused(400, f"{asked.at(name)}: the type is {kind!r}; use {', '.join(KINDS)}", param=asked.at(name))
    criteria = own.values.get("criteria")
    if kind == "noul":
        meant = own.fields("criteria", ("true", "false"))
        options, labels = ["true", "false"], ["Yes", "No"]
        descriptions = [None if meant is None else meant.values.get(option) for option in options]
    elif isinstance(criteria, dict if kind == "choice" else list) and 2 <= len(criteria) <= len(LETTERS):
        options = list(criteria) if isinstance(criteria, dict) else list(map(str, range(len(criteria))))
        descriptions = list(criteria.values()) if isinstance(criteria, dict) else list(criteria)
        labels = list(LETTERS[: len(options)])
    else:
        wanted = "an object" if kind == "choice" else "a list"
        raise own.wrong("criteria", f"{wanted} of 2 to {len(LETTERS)} options")
    told = [None if meaning is None else _said(meaning) for meaning in descriptions]
    prompt = _prompt(state, own.values.get("instructions"), kind, labels, options, told)
    return Question(name, kind, prompt, labels, options, told)


def _prompt(
    state: str, instructions: object, kind: str, labels: Sequence[str], options: Sequence[str],
    descriptions: Sequence[str | None],
) -> str:  # fmt: skip
    lines = [] if instructions is None else [_said(instructions)]
    for label, option, meaning in zip(labels, options, descriptions, strict=True):
        if kind == "noul":
            lines += [] if meaning is None else [f"{label}: {meaning}"]
        elif kind == "choice":
            lines.append(f"{label}. {option}" + ("" if meaning is None else f": {meaning}"))
        else:
            lines.append(f"{label}. {meaning}")
    end = "Answer Yes or No." if kind == "noul" else f"Answer with one letter, {labels[0]} to {labels[-1]}."
    return "\n".join([state, "", *lines, end])


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def answered(engine: Engine, questions: Sequence[Question]) -> tuple[dict[str, Any], int]:
    """Answers by name, and how many tokens were read; in the worker's thread.

    Raises:
        DGemmaError: a prompt that cannot be read.
    """
    answers, tokens = {}, 0
    for question in questions:
        request = Request(question.prompt)
        tokens += len(engine.prepare(request).ids)
        p = engine.choose(request, "{?}", question.labels)
        answers[question.name] = question.answer([p[label] for label in question.labels])
    return answers, tokens
