"""config.json beside good weights."""

import random
from pathlib import Path

from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.text.engine import Engine
from tests.fuzz import mutations, prompts, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, check_kept, demand, state


def make(random: random.Random) -> tuple[int, ...]:
    return mutations.seeds(random)


def run(made: tuple[int, ...], folder: Path) -> bool:
    checkpoint, refusals = small.copy(folder), Refusals()
    (checkpoint / "config.json").write_bytes(mutations.edited(small.CONFIG, made))
    before = state(folder)
    with refusals.allowed():
        engine = Engine.load(checkpoint)
        result = engine.generate(small.REQUEST)
        prompts.check_result(result, 18)
        same = engine.model.config == ModelConfig.from_dict(small.CONFIG)
        demand(not same or result.text == small.text(), f"the same configuration makes {result.text!r}")
    check_kept(before, state(folder))
    return refusals.none


KIND = Kind("config", make, run, count=70)
