"""Prompts: texts of any characters and any length, chat messages of any shape, lists of token ids that may be none.

A text may have a million characters, of which a tokenizer makes some 50,000 a second at worst: 60 s.
"""

import random
from pathlib import Path
from typing import Any

from mlx_dgemma.text.events import GenerationResult
from mlx_dgemma.text.prompts import prompt_ids
from mlx_dgemma.text.request import Request
from tests.fuzz import small, texts, values
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, demand

HIDDEN = ("<pad>", "<eos>", "<turn|>")  # of the text's end, which no text shows
LONGEST = 1_000_000  # characters


def message(random: random.Random) -> Any:
    """A chat message, or nearly."""
    if random.random() < 0.1:
        return values.value(random)
    made: dict[Any, Any] = {"role": random.choice(["user", "user", "system", "assistant", "model", "tool", "", "\x1b"])}
    made["content"] = texts.text(random, 5000)
    if random.random() < 0.4:
        part = {"type": "text", "text": texts.text(random, 5000)}
        made["content"] = random.choice([[part], [part, part], [], [values.value(random)], {"type": "text"}])
    if random.random() < 0.3:
        keys = ["role", "content", "tool_calls", "name", "tools", "reasoning_content", 5, None, ("a",)]
        made[random.choice(keys)] = values.value(random)
    if random.random() < 0.1:
        call = random.choice([{"function": {"arguments": "{}"}}, {"function": 5}, [], {"arguments": {}}, 5])
        made["tool_calls"] = random.choice([[call], call])
    if random.random() < 0.1:
        del made[random.choice(list(made))]
    return made


def make(random: random.Random) -> tuple[Any, bool]:
    """A prompt, and whether it goes through the chat template."""
    way, templated = random.random(), random.random() < 0.7
    if way < 0.55:
        return texts.text(random, LONGEST), templated
    if way < 0.85:
        return [message(random) for _ in range(random.choice([1, 1, 1, 2, 3, 30]))], templated
    if way < 0.95:
        ids = [random.randrange(-1, small.VOCABULARY + 1) for _ in range(random.choice([1, 2, 5, 100, 600]))]
        return random.choice([ids, [abs(i) % small.VOCABULARY for i in ids], [*ids, values.value(random)]]), templated
    return values.value(random), templated


def run(made: tuple[Any, bool], folder: Path) -> bool:
    prompt, templated = made
    engine, refusals = small.engine(), Refusals()
    with refusals.allowed():
        request = Request(prompt, seed=1, chat_template=templated)
        ids = prompt_ids(engine.tokenizer, prompt, templated)
        result = engine.generate(request)
        check_ids(prompt, templated, ids)
        check_result(result, len(ids))
    return refusals.none


def check_ids(prompt: Any, templated: bool, ids: list[int]) -> None:
    """The ids say what the prompt says."""
    decoded = small.engine().tokenizer.decode(ids)
    if isinstance(prompt, str):
        demand(prompt.strip() in decoded if templated else prompt == decoded, f"the prompt became {decoded[:300]!r}")
    elif all(type(item) is int for item in prompt):
        demand(ids == prompt, "ids are not as they were given")
    else:
        said = [m["content"] for m in prompt]
        parts = [p["text"] for c in said for p in ([{"text": c}] if isinstance(c, str) else c)]
        demand(all(part.strip() in decoded for part in parts), f"the messages became {decoded[:300]!r}")


def check_result(result: GenerationResult, prompt_tokens: int) -> None:
    """A text without its end and padding, whose counts agree."""
    stats, size = result.stats, len(result.tokens)
    demand(stats.prompt_tokens == prompt_tokens, f"{stats.prompt_tokens} prompt tokens of {prompt_tokens}")
    demand(not any(name in result.text for name in HIDDEN), f"the text shows its end: {result.text!r}")
    demand(len(result.log_p) == len(result.entropy) == size, "a figure for each token")
    demand(stats.steps == sum(result.steps_per_canvas) and stats.canvases == len(result.steps_per_canvas), "steps")
    demand(stats.tokens <= size and all(0 <= t < small.VOCABULARY for t in result.tokens), "tokens")
    demand(result.finish_reason in ("stop", "length"), repr(result.finish_reason))


KIND = Kind("prompts", make, run, count=80, seconds=60.0)
