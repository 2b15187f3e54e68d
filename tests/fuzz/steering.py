"""Requests: templates, drafts, choices, scores, and every field with any value."""

import random
from pathlib import Path
from typing import Any

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.text.request import CanvasPlan, Request
from tests.fuzz import prompts, small, texts, values
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, demand

NUMBERS = (-1, 0, 1, 2, 3, 16, 17, 0.5, 0.1, 1.5, 1e-9, 1e9, 10**30, 10**400, float("nan"), float("inf"), -0.0, True)
SETTINGS = (
    "max_new_tokens", "max_denoising_steps", "t_max", "t_min", "entropy_bound", "confidence_threshold",
    "stability_threshold", "eos_token_id", "token_choice", "soft_embedding_cutoff", "temperature_schedule",
    "acceptance", "stopping",
)  # fmt: skip
FIELDS = ("settings", "seed", "noise", "canvas", "samples", "chat_template")


def template(random: random.Random) -> str:
    """A text with gaps and slots."""
    parts = ["a", "{2}", "{?}", " {?}", "{}", "{1}", "{", "}", '"x": ', "{30}", "{1048577}", "\\{2}", " ", "é", "b c"]
    return "".join(random.choice(parts) for _ in range(random.choice([1, 2, 3, 6])))


def plan(random: random.Random) -> Any:
    """What canvases start from."""
    ids = [random.choice([None, None, 5, 20, 1, 0, 99]) for _ in range(random.choice([1, 5, 16, 20, 40]))]
    given = random.choice([ids, tuple(ids), template(random), texts.text(random, 5000), (), values.value(random)])
    if random.random() < 0.4:
        return given
    draft = random.choice([(), [5, 6, 7], texts.text(random, 500), "abc", values.value(random)])
    noise = random.choice([0.0, 0.5, 1, *NUMBERS, values.value(random)])
    return Planned((given, draft, noise, random.choice([0, 7, values.value(random)])))


class Planned(tuple[Any, ...]):
    """Arguments of a CanvasPlan, which may refuse them."""


def settings(random: random.Random) -> dict[str, Any]:
    """Fields of a GenerationConfig, one or two of them odd."""
    names = random.choices(SETTINGS, k=random.choice([1, 1, 2]))
    return {name: random.choice([random.choice(NUMBERS), values.value(random)]) for name in names}


def make(random: random.Random) -> list[tuple[str, Any]]:
    """What is asked, and how: pairs of a name and a value."""
    call = random.choice(["generate", "generate", "samples", "choose", "choose_each", "score", "score", "stream"])
    made: list[tuple[str, Any]] = [("call", call)]
    if random.random() < 0.3:
        made.append(("given", settings(random)))
    if call in ("generate", "samples", "stream") and random.random() < 0.7:
        made.append(("canvas", plan(random)))
    if call == "samples":
        made.append(("samples", random.choice([1, 2, 3, random.choice(NUMBERS), 10**12])))
    if random.random() < 0.3:
        made.append((random.choice(FIELDS), values.value(random)))
    if call.startswith("choose"):
        labels = [random.choice(["a", "b", "ab", "c d", "", " ", "é", texts.text(random, 500)]) for _ in range(3)]
        labels = random.choice([["a", "b"], labels, values.value(random), [*labels, values.value(random)]])
        labels = [labels] * random.choice([0, 1, 1, 2]) if call == "choose_each" else labels
        made += [("template", random.choice(["{?}", template(random), values.value(random)])), ("labels", labels)]
        made.append(("draws", random.choice([1, 2, 0, -1, 1.5, "x"])))
    if call == "score":
        made += [("text", random.choice(["abc", texts.text(random), values.value(random)]))]
        made.append(("causal", random.choice([True, False])))
    return made


def run(made: list[tuple[str, Any]], folder: Path) -> bool:
    asked, refusals = dict(made), Refusals()
    call, given = asked.pop("call", "generate"), asked.pop("given", {})
    if isinstance(given.get("max_denoising_steps"), int):
        given["confidence_threshold"] = 1e30  # as many as they may be: a canvas then stops early
    arguments = {name: asked.pop(name) for name in ("template", "labels", "draws", "text", "causal") if name in asked}
    with refusals.allowed():
        own = {"settings": GenerationConfig(**given)} if given else {}
        if isinstance(canvas := asked.get("canvas"), Planned):
            asked["canvas"] = CanvasPlan(*canvas)
        request = Request("sort: d b a c", **{**own, **asked})
        answer(call, request, arguments)
    return refusals.none


def answer(call: str, request: Request, arguments: dict[str, Any]) -> None:
    """Asks, and judges the answer."""
    engine = small.engine()
    if call == "stream":
        list(engine.stream(request))
    elif call == "generate":
        prompts.check_result(engine.generate(request), 18 if request.chat_template else 13)
    elif call == "samples":
        found = engine.samples(request)
        demand(len(found) == request.samples, f"{len(found)} samples of {request.samples}")
        for sample in found:
            prompts.check_result(sample.result, 18 if request.chat_template else 13)
    elif call == "score":
        score = engine.score(request, arguments.get("text", "a"), causal=arguments.get("causal", False))
        demand(len(score.tokens) == len(score.log_p) == len(score.entropy) > 0, "a figure for each token")
        demand(all(p <= 1e-5 for p in score.log_p) and all(h >= -1e-5 for h in score.entropy), "no probabilities")
    else:
        shape, labels = arguments.get("template", "{?}"), arguments.get("labels", ["a", "b"])
        read = getattr(engine, call)(request, shape, labels, draws=arguments.get("draws", 1))
        for slot in read if isinstance(read, list) else [read]:
            demand(abs(sum(slot.values()) - 1) < 1e-5, f"probabilities add up to {sum(slot.values())}")


KIND = Kind("steering", make, run, count=90)
