"""A conversation: what was said, how the next answer is asked for, and the file it is kept in. No terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import read_file, write_whole
from mlx_dgemma.text.images import BUDGETS
from mlx_dgemma.text.messages import Message, last_asked, normalised
from mlx_dgemma.text.request import Request
from mlx_dgemma.text.tools import normalised_tools

if TYPE_CHECKING:
    from mlx_dgemma.text.events import GenerationResult

FORM = 1  # of the files
Question = str | list[Message]  # what a user's message holds: a text, or parts, some of which are images
SETTABLE = [
    f.name for f in fields(GenerationConfig) if f.name not in ("temperature_schedule", "acceptance", "stopping")
]


@dataclass
class Session:
    """What a conversation is made of.

    Attributes:
        checkpoint: its name.
        alone: whether the model sees no turn before the user's last, as the embedded checkpoint knows short talks only.
        settings, seed, thinking, tools: of the next requests; turn i has the seed `seed` + i.
        system: the system turn, None for none.
        messages: the turns so far, without the system's.
        image_tokens: of an image, at most; None takes the checkpoint's.
    """

    checkpoint: str
    alone: bool = False
    settings: GenerationConfig = field(default_factory=GenerationConfig)
    seed: int = 0
    thinking: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    image_tokens: int | None = None

    def request(self, question: Question | None) -> Request:
        """What is asked of an engine for the answer to a question; None goes on behind the results of its calls."""
        messages = [*self.messages, *_turn(question)]
        seen = messages[last_asked(messages) :] if self.alone else messages
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        seed = self.seed + sum(message["role"] == "user" for message in self.messages)
        return Request(
            [*system, *seen], settings=self.settings, seed=seed, thinking=self.thinking, tools=self.tools,
            image_tokens=self.image_tokens,
        )  # fmt: skip

    def add_result(self, text: str) -> bool:
        """The result of the first call that has none; whether all calls have one now.

        Raises:
            DGemmaError: no call waits for a result.
        """
        told = len(list(takewhile(lambda message: message["role"] == "tool", reversed(self.messages))))
        calls = self.messages[-1 - told].get("tool_calls", []) if told < len(self.messages) else []
        if told >= len(calls):
            raise DGemmaError("no call waits for a result; ask something that calls a tool")
        self.messages.append({"role": "tool", "tool_call_id": calls[told]["id"], "content": text})
        return told + 1 == len(calls)

    def take_results_back(self) -> None:
        """The results behind the last calls, which could not be answered, are waited for again."""
        while self.messages and self.messages[-1]["role"] == "tool":
            self.messages.pop()

    def keep(self, question: Question | None, result: GenerationResult) -> None:
        """A turn joins the conversation."""
        answer: Message = {"role": "assistant", "content": result.text}
        if result.thought:
            answer["reasoning"] = result.thought
        if result.tool_calls:
            answer["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in result.tool_calls
            ]
        self.messages += [*_turn(question), answer]

    def undo(self) -> Question | None:
        """Takes the last turn away; what was asked in it, None if there is none."""
        last = last_asked(self.messages)
        if not self.messages[last:] or self.messages[last]["role"] != "user":
            return None
        question: Question = self.messages[last]["content"]
        del self.messages[last:]
        return question

    def set(self, name: str, value: str) -> None:
        """Gives a field of the settings, the seed or image_tokens a value.

        Raises:
            DGemmaError: no such field, or a value that it cannot have.
        """
        if name not in ("seed", "image_tokens", *SETTABLE):
            raise DGemmaError(f"no setting {name!r}; there are seed, image_tokens, {', '.join(SETTABLE)}")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        if name == "seed":
            self.seed = replace(self.request("x"), seed=read).seed
            return
        if name == "image_tokens":
            self.image_tokens = _budget(read)
            return
        given = {own: getattr(self.settings, own) for own in self.settings.given}
        self.settings = GenerationConfig(**{**given, name: read})

    def save(self, path: str) -> None:
        """Writes the conversation as JSON.

        Raises:
            DGemmaError: the file cannot be written.
        """
        given = {own: getattr(self.settings, own) for own in sorted(self.settings.given)}
        known = {"form": FORM, "checkpoint": self.checkpoint, "seed": self.seed, "thinking": self.thinking}
        known |= {"image_tokens": self.image_tokens, "settings": given, "tools": list(self.tools)}
        known |= {"system": self.system, "messages": self.messages}
        text = json.dumps(known, ensure_ascii=False, indent=1) + "\n"
        write_whole(path, lambda file: file.write(text.encode("utf-8", "surrogatepass")))

    def load(self, path: str) -> str | None:
        """Takes over a conversation; a word, if it was held with another checkpoint.

        Raises:
            DGemmaError: a file that is none. The conversation stays what it was.
        """
        try:
            content = json.loads(read_file(Path(path).expanduser()))
        except (OSError, ValueError, RecursionError) as error:
            raise DGemmaError(f"{path} cannot be read ({first_line(error)}); give a file that /save wrote") from None
        if not isinstance(content, dict) or content.get("form") != FORM:
            raise DGemmaError(f"{path} is no conversation; give a file that /save wrote")
        system, messages = content.get("system"), content.get("messages")
        if not isinstance(messages, list) or not isinstance(system, str | None):
            raise DGemmaError(f"{path}: its messages are damaged; give a file that /save wrote")
        settings, tools = content.get("settings"), content.get("tools")
        seed, thinking = content.get("seed"), content.get("thinking")
        if type(seed) is not int or seed < 0 or type(thinking) is not bool or not isinstance(settings, dict):
            raise DGemmaError(f"{path}: its settings are damaged; give a file that /save wrote")
        try:
            normalised(messages)
            normalised_tools(tools)
            own, given = GenerationConfig(**settings), tuple(tools) if isinstance(tools, list) else ()
            budget = _budget(content.get("image_tokens"))
            made = replace(self, settings=own, seed=seed, thinking=thinking, tools=given, image_tokens=budget)
            made.request("x")
        except (DGemmaError, TypeError) as error:
            raise DGemmaError(f"{path}: {first_line(error)}") from None
        self.settings, self.seed, self.thinking, self.tools = made.settings, seed, thinking, made.tools
        self.system, self.messages, self.image_tokens = system, messages, budget
        other = content.get("checkpoint")
        return None if other == self.checkpoint else f"this conversation was held with {other!r}"


def _budget(value: object) -> int | None:
    """Soft tokens of an image at most, or None for the checkpoint's own number."""
    if value is not None and (type(value) is not int or value not in BUDGETS):
        raise DGemmaError(f"image_tokens must be {', '.join(map(str, BUDGETS))} or null, got {value!r}")
    return value


def _turn(question: Question | None) -> list[Message]:
    return [] if question is None else [{"role": "user", "content": question}]
