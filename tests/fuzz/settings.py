"""generation_config.json beside a good checkpoint."""

import random
from pathlib import Path

from mlx_dgemma.text.engine import Engine
from tests.fuzz import mutations, prompts, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, check_kept, demand, state

NAME = "generation_config.json"


def make(random: random.Random) -> tuple[int, ...]:
    return mutations.seeds(random)


def run(made: tuple[int, ...], folder: Path) -> bool:
    checkpoint, refusals = small.copy(folder), Refusals()
    (checkpoint / NAME).write_bytes(mutations.edited(small.GENERATION, made))
    before = state(folder)
    with refusals.allowed():
        engine = Engine.load(checkpoint)
        defaults = engine.model.generation_config
        if defaults.max_denoising_steps <= 100 and defaults.max_new_tokens <= 1000:  # more are a long run, no fault
            result = engine.generate(small.REQUEST)
            prompts.check_result(result, 18)
            same = defaults == small.engine().model.generation_config
            demand(not same or result.text == small.text(), f"the same settings make {result.text!r}")
    check_kept(before, state(folder))
    return refusals.none


KIND = Kind("settings", make, run, count=50)
