"""A user's program, for a type checker: what the package hands out has the types that the documentation says.

It runs too. `tests/test_types.py` checks it in the checkout, `.ci/wheel` against an installed wheel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_type

import mlx.core as mx

from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request, choose, generate_text, load
from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.strategies import Acceptance, Step
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.events import GenerationResult, Sample, Stats, TextCanvas
from mlx_dgemma.text.score import Score
from mlx_dgemma.trace import Recorder, Trace, load_trace, record, replay


@dataclass(frozen=True)
class LikelierThan:
    """Accepts every token of at least this probability, and the surest one in any case."""

    p: float

    def __call__(self, step: Step) -> mx.array:
        return (mx.exp(step.log_p) >= self.p) | (step.log_p == step.log_p.max(axis=-1, keepdims=True))


def settings() -> GenerationConfig:
    rule: Acceptance = LikelierThan(0.9)
    made = GenerationConfig(max_new_tokens=64, acceptance=rule, eos_token_id=None, token_choice="argmax")
    assert_type(made.max_new_tokens, int)
    assert_type(made.acceptance, Acceptance | None)
    assert_type(made.stops, list[int])
    return made


def streamed(engine: Engine, request: Request) -> tuple[str, int]:
    """The text, and how many positions were accepted in all."""
    text, accepted = "", 0
    events = engine.stream(request)
    assert_type(events, Iterator[DenoisingStep | TextCanvas])
    for event in events:
        if isinstance(event, TextCanvas):
            text += assert_type(event.text, str)
            assert_type(event.finish_reason, str | None)
            assert_type(event.stats, Stats)
        else:
            accepted += assert_type(event, DenoisingStep).accepted_count
            assert_type(event.log_p, mx.array)
            assert_type(event.clamped, mx.array | None)
    return text, accepted


def recorded(engine: Engine, request: Request) -> Trace:
    recorder = Recorder(engine, request)
    events = record(engine.stream(request), recorder)
    assert_type(events, Iterator[DenoisingStep | TextCanvas])
    for event in events:
        assert_type(event, DenoisingStep | TextCanvas)
    return assert_type(recorder.trace(), Trace)


def results(engine: Engine) -> None:
    """What the engine's methods return."""
    plan = CanvasPlan("The answer is {3}.", noise=0.5, seed=1)
    result = engine.generate(Request([{"role": "user", "content": "spell 12"}], settings=settings(), canvas=plan))
    assert_type(result, GenerationResult)
    assert_type(result.tokens, list[int])
    assert_type(result.stats.tokens_per_second, float)
    for sample in assert_type(engine.samples(Request("roman 3", samples=2)), list[Sample]):
        assert_type(sample.result.text, str)
    score = assert_type(engine.score(Request("roman 3"), "III"), Score)
    assert_type(score.log_p, list[float])
    assert_type(engine.score(Request([2, 4]), [5, 6], causal=True).perplexity, float)
    assert_type(engine.choose(Request("roman 3"), "{?}", ["III", "IV"]), dict[str, float])
    assert_type(engine.choose_each(Request("roman 3"), "{?}", [["III", "IV"]]), list[dict[str, float]])


def main() -> None:
    model, tokenizer = load(dtype=mx.float32)
    assert_type(model, DiffusionGemma)
    words: Tokenizer | None = tokenizer
    assert_type(generate_text(model, words, "roman 3", seed=1), GenerationResult)
    assert_type(choose(model, tokenizer, "roman 3", "{?}", ("III", "IV")), dict[str, float])
    engine = Engine.load()
    request = Request("roman 3", settings=settings(), seed=7, canvas=[None, None])
    text, accepted = streamed(engine, request)
    print(text, accepted)
    results(engine)
    try:
        recorded(engine, request).save("run.npz")
    except DGemmaError as error:
        print(error)
    for event in replay(load_trace("run.npz")):
        print(type(event).__name__)


if __name__ == "__main__":
    main()
