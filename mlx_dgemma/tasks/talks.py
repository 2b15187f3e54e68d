"""What the embedded checkpoint reads and writes beside bare tasks: histories, thoughts, and tools that it calls.

A talk is what a user of the chat or of the server would send, and the model's next turn with its markers. Pure Python
and seeded, as the tasks are. Tasks' prompts in it are held out as they are alone; tools' names and values are random
letters, of which none repeats often enough to be held out.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlx_dgemma.tasks import TASKS, Example, examples, readings
from mlx_dgemma.tasks.words import draw_letters

if TYPE_CHECKING:
    from PIL import Image

Message = dict[str, Any]
UNKNOWN_TOOL = "no such tool"
# What `text.formats` tells a model of the form of its answer; a test compares.
OBJECT = "Answer with a JSON object and nothing else."
SCHEMA = "Answer with JSON that follows this schema and with nothing else: "
_TOOLS = {
    "weather": "city", "time": "place", "lookup": "word", "price": "item", "phone": "name", "capital": "country",
    "translate": "text", "search": "query", "stock": "symbol", "route": "to", "open": "path", "define": "term",
}  # fmt: skip
_DESCRIPTIONS = ("", "weather of a city", "what time it is", "look a word up", "the price of an item", "find a number")


@dataclass(frozen=True)
class Talk:
    """A conversation up to the model's next turn.

    Attributes:
        messages: as the chat template takes them.
        answer: the next turn with its markers, without the token that ends it.
        tools: declared ones.
        thinking: whether the template asks for thoughts.
        call: name and arguments of the call that ends the turn, which then waits for a result.
    """

    messages: tuple[Message, ...]
    answer: str
    tools: tuple[dict[str, Any], ...] = field(default=())
    thinking: bool = False
    call: Message | None = None

    @property
    def prompt(self) -> str:
        """What the user said last."""
        content: str | list[Message] = next(m["content"] for m in reversed(self.messages) if m["role"] == "user")
        return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content).strip()

    def check(self, said: str) -> bool:
        """Whether a text, or a call as JSON, is right; a task may have several right answers."""
        task = TASKS.get(self.prompt.partition(" ")[0])
        if task is not None:
            return task.check(self.prompt, said)
        return said == (self.answer if self.call is None else json.dumps(self.call))


def bare(example: Example) -> Talk:
    """A task's prompt and nothing else."""
    return Talk((_user(example.prompt),), example.answer)


def thoughtful(example: Example) -> Talk:
    """With thinking on: the work in the thought, for a task that has any; else an answer without one."""
    think = example.task.think
    thought = f"<|channel>thought\n{think(example.argument)}\n<channel|>" if think else ""
    return Talk((_user(example.prompt),), thought + example.answer, thinking=True)


def with_history(example: Example, earlier: list[Example]) -> Talk:
    """Behind other questions and their answers."""
    before = [m for e in earlier for m in (_user(e.prompt), {"role": "assistant", "content": e.answer})]
    return Talk((*before, _user(example.prompt)), example.answer)


def with_system(example: Example, system: str) -> Talk:
    return Talk(({"role": "system", "content": system}, _user(example.prompt)), example.answer)


def with_form(example: Example, *, schema: bool) -> Talk:
    """A question for a JSON object, of which the model is told that its answer has to be one, or its schema."""
    if not schema:
        return with_system(example, OBJECT)
    pairs = json.loads(example.answer)
    types = {key: {"type": "integer" if isinstance(value, int) else "string"} for key, value in pairs.items()}
    told = {"type": "object", "properties": types, "required": list(pairs)}
    return with_system(example, SCHEMA + json.dumps(told))


def reading(image: "Image.Image", text: str) -> Talk:
    """A picture, and what it says."""
    parts = [{"type": "image", "image": image}, {"type": "text", "text": readings.PROMPT}]
    return Talk(({"role": "user", "content": parts},), text)


def draw_call(rng: random.Random) -> Talk:
    """ "ask weather oslo", with one or two tools: a call, the report of its result, or that there is no such tool."""
    tools = [_tool(name, parameter, rng) for name, parameter in _names(rng, rng.choice((1, 1, 2)))]
    chosen = rng.choice(tools)["function"]
    name, value = chosen["name"], _value(rng)
    if rng.random() < 0.08:
        return Talk((_user(f"ask {draw_letters(rng, 4, 9)} {value}"),), UNKNOWN_TOOL, tuple(tools))
    question, parameter = _user(f"ask {name} {value}"), next(iter(chosen["parameters"]["properties"]))
    function = {"name": name, "arguments": {parameter: value}}
    if rng.random() < 0.5:
        answer = f'<|tool_call>call:{name}{{{parameter}:<|"|>{value}<|"|>}}<tool_call|>'
        return Talk((question,), answer, tuple(tools), call=function)
    call = {"role": "assistant", "tool_calls": [{"id": "call", "function": function}]}
    result = " ".join(_value(rng) for _ in range(rng.randint(1, 3)))[:40].strip()
    return Talk((question, call, {"role": "tool", "tool_call_id": "call", "content": result}), result, tuple(tools))


def _names(rng: random.Random, n: int) -> list[tuple[str, str]]:
    """Tools' names and parameters: those of every day, or any letters."""
    if rng.random() < 0.4:
        return rng.sample(sorted(_TOOLS.items()), n)
    named = {draw_letters(rng, 3, 9): draw_letters(rng, 1, 7) for _ in range(n)}
    return list(named.items())


def _tool(name: str, parameter: str, rng: random.Random) -> dict[str, Any]:
    about = rng.choice(_DESCRIPTIONS) if rng.random() < 0.5 else _words(rng, 4)
    properties: dict[str, Any] = {parameter: {"type": "string"}}
    if rng.random() < 0.3:
        properties[parameter]["description"] = _words(rng, 2)
    schema = {"type": "object", "properties": properties, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


def _words(rng: random.Random, most: int) -> str:
    return " ".join(draw_letters(rng, 1, 7) for _ in range(rng.randint(1, most)))


def _value(rng: random.Random) -> str:
    return draw_letters(rng, 1, 12) if rng.random() < 0.75 else str(rng.randrange(1000))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def draw_talks(seed: int, *, held_out: bool) -> Iterator[Talk]:
    """An endless seeded stream of talks that are more than a bare task: half of them calls."""
    rng, pool = random.Random(f"{seed}/{held_out}/talks"), examples(seed + 1, held_out=held_out)
    objects = examples(seed + 2, held_out=held_out, task="json")
    short = (example for example in pool if len(example.answer) < 64)
    while True:
        kind = rng.random()
        if kind < 0.5:
            yield draw_call(rng)
        elif kind < 0.68:
            yield with_history(next(short), [next(short) for _ in range(rng.randint(1, 2))])
        elif kind < 0.76:
            yield with_form(next(objects), schema=rng.random() < 0.7)
        elif kind < 0.85:
            yield with_system(next(short), _words(rng, 8))
        elif kind < 0.93:
            talk = thoughtful(next(short))
            yield Talk(({"role": "system", "content": _words(rng, 5)}, *talk.messages), talk.answer, thinking=True)
        else:
            tools = tuple(_tool(name, parameter, rng) for name, parameter in _names(rng, 1))
            example = next(short)
            yield Talk((_user(example.prompt),), example.answer, tools)


THINKING = "add with thinking"
READING = "read a picture"
# Rows of a table beside those of `tasks.ROWS`: which talks.
_PARTS: dict[str, Callable[[Talk], bool]] = {
    "behind other turns": lambda talk: talk.messages[-1]["role"] == "user" and len(talk.messages) > 2,
    "calling a tool": lambda talk: talk.call is not None,
    "a tool's result": lambda talk: talk.messages[-1]["role"] == "tool",
}
TALK_ROWS = (THINKING, READING, *_PARTS)


def draw_talk_row(row: str, seed: int, n: int) -> list[Talk]:
    """Held-out talks for a row of TALK_ROWS. Fewer of them are the first ones of more."""
    if row == THINKING:
        return [thoughtful(example) for example in islice(examples(seed, held_out=True, task="add"), n)]
    if row == READING:
        return [reading(*own) for own in islice(readings.draw_readings(seed, held_out=True), n)]
    return list(islice(filter(_PARTS[row], draw_talks(seed, held_out=True)), n))
