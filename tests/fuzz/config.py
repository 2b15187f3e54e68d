"""config.json beside good weights."""

import copy
import random
from pathlib import Path

from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.text.engine import Engine
from tests.fuzz import mutations, prompts, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, check_kept, demand, state

SUBTLE = ("canvas_length", "eos_token_id", "denoiser_trained", "quantization", "generation_config")  # beside a shape
NUMBERS = (-1, 0, 1, 17, 1000)
INNER = (
    "sliding_window", "max_position_embeddings", "top_k_experts", "rms_norm_eps", "final_logit_softcapping",
    "rope_parameters", "per_layer_config", "layer_types", "num_hidden_layers",
)  # fmt: skip


def make(random: random.Random) -> tuple[int, ...]:
    return mutations.seeds(random)


def changed(changes: tuple[int, ...]) -> bytes:
    """The good configuration after these changes; every third is of what no tensor's shape would betray."""
    content = copy.deepcopy(small.CONFIG)
    for seed in changes:
        chance = random.Random(seed)
        if seed % 3 == 0:
            name = chance.choice(SUBTLE + INNER)
            (content["text_config"] if name in INNER else content)[name] = chance.choice(
                [mutations.atom(chance), *NUMBERS]
            )
    return mutations.edited(content, tuple(seed for seed in changes if seed % 3))


def run(made: tuple[int, ...], folder: Path) -> bool:
    checkpoint, refusals = small.copy(folder), Refusals()
    (checkpoint / "config.json").write_bytes(changed(made))
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
