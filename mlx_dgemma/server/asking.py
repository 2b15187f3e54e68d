"""Fields that several surfaces have, as parts of a `Request`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.server.bodies import Fields
from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.images import check_decoded
from mlx_dgemma.server.service import THINKS, Service
from mlx_dgemma.text.images import BUDGETS
from mlx_dgemma.text.request import MAX_SEED, CanvasPlan, Message, Request

STOPS, TOOLS, SAMPLES = 16, 256, 16
SEEDS = MAX_SEED + 1
NUMBERS = {  # of the sampler, which a request may set, in bounds
    "entropy_bound": (0, 1e6), "t_min": (1e-3, 100), "t_max": (1e-3, 100), "confidence_threshold": (0, 100),
}  # fmt: skip
COUNTS = {"max_denoising_steps": (1, 1000), "stability_threshold": (0, 1000)}
DIFFUSION = (*NUMBERS, *COUNTS, "fast", "drafts", "template", "init", "noise", "image_tokens")
DETAILS = ("text", "tokens")
KWARGS = ("enable_thinking", "preserve_thinking")


@dataclass
class Asked:
    """What a body asks for, in our words; `requests` are what the engine gets.

    Attributes:
        messages: of the conversation.
        settings: of the sampler that were given, by name.
        seed: of the first text.
        thinking, tools, tool_choice, parallel_tool_calls, stop, response_format, plan: see `Request`.
        samples: how many texts.
        drafts: "text" or "tokens" if denoising steps are sent, "" if not.
        alternatives: how many of the likeliest tokens are told for each.
        image_tokens: of an image, at most; None takes the checkpoint's.
    """

    messages: list[Message]
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = field(default_factory=lambda: secrets.randbelow(1 << 32))
    thinking: bool = False
    tools: list[Any] = field(default_factory=list)
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    stop: list[str] = field(default_factory=list)
    response_format: dict[str, Any] | None = None
    plan: CanvasPlan = field(default_factory=CanvasPlan)
    samples: int = 1
    drafts: str = ""
    alternatives: int = 0
    image_tokens: int | None = None

    def requests(self, service: Service) -> list[Request]:
        """One for each text, with seeds one after another; images are decoded, see `server.images`.

        Raises:
            Refused: settings that go with no sampler, or a form that is none.
        """
        check_decoded(self.messages)
        try:
            settings = GenerationConfig(**self.settings)
            return [
                Request(
                    service.conversation(self.messages), settings=settings, seed=(self.seed + i) % SEEDS,
                    thinking=self.thinking, tools=tuple(self.tools), tool_choice=self.tool_choice,
                    parallel_tool_calls=self.parallel_tool_calls, stop=tuple(self.stop),
                    response_format=self.response_format, canvas=self.plan, alternatives=self.alternatives,
                    image_tokens=self.image_tokens,
                )
                for i in range(self.samples)
            ]  # fmt: skip
        except DGemmaError as error:
            raise Refused(400, str(error)) from None


def take_sampling(asked: Asked, body: Fields, *lengths: str) -> None:
    """Length, seed, temperature, ends; `lengths` are the names of the field that says how long."""
    given = [length for name in lengths if (length := body.integer(name, 1)) is not None]
    if given:
        asked.settings["max_new_tokens"] = given[0]
    seed = body.integer("seed")
    if seed is not None:
        asked.seed = seed % SEEDS
    if body.number("temperature", 0, 100) == 0:
        asked.settings["token_choice"] = "argmax"


def within(asked: Asked, service: Service) -> None:
    """An answer cannot be longer than the context, whatever length was asked for."""
    if "max_new_tokens" in asked.settings:
        asked.settings["max_new_tokens"] = min(asked.settings["max_new_tokens"], service.context)


def take_diffusion(asked: Asked, body: Fields) -> None:
    """The `diffusion` object: this model's own settings."""
    own = body.fields("diffusion", DIFFUSION)
    if own is None:
        return
    for name, (low, high) in NUMBERS.items():
        if (value := own.number(name, low, high)) is not None:
            asked.settings[name] = value
    for name, (least, most) in COUNTS.items():
        if (count := own.integer(name, least, most)) is not None:
            asked.settings[name] = count
    if (fast := own.flag("fast")) is not None:
        asked.settings["fast"] = fast
    asked.image_tokens = own.integer("image_tokens")
    if asked.image_tokens not in (None, *BUDGETS):
        raise own.wrong("image_tokens", f"one of {', '.join(map(str, BUDGETS))}")
    drafts = own.values.get("drafts")
    if drafts not in (None, False, True, *DETAILS):
        raise own.wrong("drafts", f"one of {', '.join(DETAILS)}")
    asked.drafts = "text" if drafts is True else drafts or ""
    template, draft = own.text("template"), own.text("init")
    if template is not None or draft is not None:
        noise = own.number("noise", 0, 1) or 0.0
        asked.plan = CanvasPlan(template or (), draft or (), noise, asked.seed)


def take_thinking(asked: Asked, body: Fields, service: Service) -> None:
    """Whether to think: an effort, a switch of the template's, or the model's name."""
    effort = body.text("reasoning_effort")
    switches = body.fields("chat_template_kwargs", KWARGS)
    wanted = None if switches is None else switches.flag("enable_thinking")
    if wanted is None and effort is not None:
        wanted = effort not in ("none", "minimal") and service.can_think  # an effort is a hint
    asked.thinking = (body.text("model") or "").endswith(THINKS) if wanted is None else wanted


def take_tools(asked: Asked, body: Fields) -> None:
    """Tools, and which of them has to be called."""
    asked.tools = body.items("tools", TOOLS) or []
    asked.parallel_tool_calls = body.flag("parallel_tool_calls") is not False
    choice = body.values.get("tool_choice")
    if isinstance(choice, dict):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, dict) else None
    if choice is not None and not isinstance(choice, str):
        raise body.wrong("tool_choice", "auto, none, required or a function's name")
    asked.tool_choice = choice or "auto"
    if not asked.tools and asked.tool_choice == "none":
        asked.tool_choice = "auto"


def take_draft(asked: Asked, body: Fields, service: Service) -> int:
    """The answer that a client expects, as the draft of the first canvas; how many tokens of it are used."""
    prediction = body.fields("prediction")
    if prediction is None:
        return 0
    content = prediction.values.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise prediction.wrong("content", "a text, or a list of parts that are")
    ids = service.spelled("".join(map(str, texts)), "prediction")
    ids = ids[: service.engine.model.config.canvas_length]
    asked.plan = CanvasPlan(asked.plan.given, ids, asked.plan.noise, asked.seed)
    return len(ids)


def go_on(asked: Asked, service: Service) -> str:
    """Takes the last message for the beginning of the answer, clamped into the canvas; what it says."""
    text: str = asked.messages[-1]["content"]
    asked.messages = asked.messages[:-1]
    asked.plan = CanvasPlan(service.spelled(text, "the begun answer"), seed=asked.seed)
    return text
