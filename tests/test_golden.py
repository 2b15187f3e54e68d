"""One seed gives one output, from one version to the next: what version 0.1.0 wrote (commit 17c140b), token for token.

`python -m tests.test_golden` prints the file anew; a change that alters it on purpose says so in the changelog.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from mlx_dgemma import GenerationConfig, generate_samples, generate_text, load
from mlx_dgemma.generate import main

GOLDEN = Path(__file__).parent / "data" / "golden.json"
CASES = [
    {"prompt": "upper hello world", "seed": 1},
    {"prompt": "reverse canvas", "seed": 2},
    {"prompt": "sort diffusion", "seed": 3},
    {"prompt": "spell 1842", "seed": 4},
    {"prompt": "roman 1994", "seed": 5},
    {"prompt": "count 18 to 50", "seed": 6},
    *({"prompt": "sudoku 1...............", "seed": seed} for seed in range(4)),
    {"prompt": "sudoku 1..4..1.2....3.1", "seed": 8, "settings": {"token_choice": "argmax"}},
    {"prompt": "sudoku .2......3...4...", "seed": 9, "settings": {"entropy_bound": 1.0, "t_max": 1.5, "t_min": 0.2}},
    {"prompt": "sudoku .2......3...4...", "seed": 9, "settings": {"max_denoising_steps": 3}},
    {"prompt": "sudoku .2......3...4...", "seed": 9, "settings": {"soft_embedding_cutoff": 10.0}},
    {"prompt": "sudoku .2......3...4...", "seed": 9, "samples": 3},
    {"prompt": "count 20 to 44", "seed": 1, "samples": 3},
]


def outcome(pair, prompt: str, seed: int, settings: dict | None = None, samples: int = 1) -> list:
    """Steps by canvas and canvases, of one text or of several."""
    config = GenerationConfig(**{"max_new_tokens": 128, **(settings or {})})
    if samples == 1:
        results = [generate_text(*pair, prompt, config, seed=seed)]
    else:
        several = generate_samples(*pair, prompt, config, n=samples, seed=seed)
        results = [sample.result for sample in sorted(several, key=lambda sample: sample.seed)]
    return [[result.steps_per_canvas, result.canvases] for result in results]


@pytest.fixture(scope="module")
def pair():
    return load()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_output_is_what_it_was(pair, number):
    assert outcome(pair, **CASES[number]) == json.loads(GOLDEN.read_text())[number]


# What the forms held before a step could leave something out, and what has been added since, which is documented.
ARRAYS = {
    "about", "canvas", "draft", "entropy", "log_p", "accepted", "clamped", "canvas_index", "step", "remaining",
    "temperature", "accepted_count", "mean_entropy", "finished", "seconds", "elapsed", "prompt_ids",
}  # fmt: skip
ABOUT = {
    "format", "version", "prompt", "settings", "seed", "model_id", "versions", "finish_reason", "committed", "pieces",
    "plan",
}  # fmt: skip
SETTINGS = {
    "max_new_tokens", "max_denoising_steps", "t_max", "t_min", "entropy_bound", "confidence_threshold",
    "stability_threshold", "eos_token_id", "token_choice", "soft_embedding_cutoff",
}  # fmt: skip
STATS = {
    "prompt_tokens", "prompt_seconds", "tokens", "canvases", "steps", "seconds", "peak_memory", "thought_tokens",
    "cached_tokens",
}  # fmt: skip
LATER = {"full_steps", "causal_tokens", "image_tokens", "image_seconds"}
ADDED = {"computed", "rows", "scored", "mixed"}


def test_a_published_samplers_trace_holds_what_it_held(tmp_path):
    path = tmp_path / "run.npz"
    assert main(["--prompt", "roman 1994", "--seed", "5", "--quiet", "--trace", str(path)]) == 0
    with np.load(path) as content:
        assert set(content) == ARRAYS | ADDED and content["computed"].all()
        about = json.loads(content["about"].tobytes())
    assert set(about) == ABOUT and set(about["settings"]) == SETTINGS
    assert set(about["committed"][0]["stats"]) == STATS | LATER


def test_json_of_a_published_sampler_holds_what_it_held(capsys):
    assert main(["--prompt", "roman 1994", "--seed", "5", "--quiet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == (
        "model prompt seed text thought tool_calls tokens finish_reason stop_text fault steps_per_canvas log_p "
        "entropy stats".split()
    )
    rates = {"prompt_tokens_per_second", "tokens_per_second", "tokens_per_forward"}
    assert set(told["stats"]) == STATS | rates | LATER | {"work"}
    assert told["stats"]["work"] == pytest.approx(told["stats"]["steps"] / told["stats"]["tokens"], rel=0.2)


if __name__ == "__main__":
    loaded = load()
    print("[" + ",\n".join(json.dumps(outcome(loaded, **case), separators=(",", ":")) for case in CASES) + "]")
