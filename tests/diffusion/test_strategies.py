"""Strategies of one's own: the published ones are of the same kind, others take their place, and cost nothing more."""

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.diffusion import state
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.sampling import Argmax, Categorical, EntropyBound, LinearSchedule
from mlx_dgemma.diffusion.stopping import StableAndConfident
from mlx_dgemma.diffusion.strategies import Acceptance, Stopping, TemperatureSchedule, TokenChoice
from mlx_dgemma.model import memory
from mlx_dgemma.report.page import render
from mlx_dgemma.report.plots import curves
from mlx_dgemma.trace import Recorder, load_trace, record
from tests.conftest import CANVAS, VOCABULARY, ReplayedNoise


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, None)


@dataclass(frozen=True)
class Nothing:
    """Accepts nothing."""

    def __call__(self, step):
        return mx.zeros(step.draft.shape, mx.bool_)


@dataclass(frozen=True)
class Surest:
    """Accepts the `count` surest positions."""

    count: int

    def __call__(self, step):
        rank = mx.argsort(mx.argsort(step.entropy, axis=-1), axis=-1)
        return rank < self.count


@dataclass(frozen=True)
class After:
    """Stops at step `count`."""

    count: int

    def __call__(self, step):
        return mx.full(step.mean_entropy.shape, len(step.earlier) + 1 >= self.count)


@dataclass(frozen=True)
class Constant:
    value: float

    def __call__(self, remaining, max_steps):
        return self.value


@dataclass(frozen=True)
class SureArgmax:
    """The most likely token where it is likely, the draw elsewhere."""

    draws: ClassVar[bool] = True

    def __call__(self, step):
        return mx.where(step.log_p > -0.5, step.draft, step.drawn)


def run(engine, samples: int = 1, canvas=(), noise=None, **settings) -> list[DenoisingStep]:
    """The denoising steps of one canvas, or of one canvas of several samples."""
    own = {"max_new_tokens": CANVAS, "eos_token_id": [], "max_denoising_steps": 12, **settings}
    request = Request([1, 2, 3], settings=GenerationConfig(**own), canvas=canvas, samples=samples, noise=noise, seed=3)
    stream = engine.stream(request) if samples == 1 else engine.stream_samples(request)
    return [event for event in stream if isinstance(event, DenoisingStep)]


def values(event: DenoisingStep) -> list:
    fields = (getattr(event, f.name) for f in dataclasses.fields(event))
    return [np.array(value).tolist() if isinstance(value, mx.array) else value for value in fields]


@pytest.mark.parametrize("samples", [1, 3])
def test_the_published_sampler_is_four_strategies(engine, samples):
    numbers = {"t_min": 0.3, "t_max": 0.9, "entropy_bound": 0.2, "stability_threshold": 2, "confidence_threshold": 0.01}
    spelled = {
        "temperature_schedule": LinearSchedule(0.3, 0.9),
        "acceptance": EntropyBound(0.2),
        "stopping": StableAndConfident(2, 0.01),
        "token_choice": Categorical(),
    }
    assert list(map(values, run(engine, samples, **numbers))) == list(map(values, run(engine, samples, **spelled)))
    assert list(map(values, run(engine, samples, token_choice="argmax"))) == list(
        map(values, run(engine, samples, token_choice=Argmax()))
    )
    kinds = (TemperatureSchedule, Acceptance, Stopping, TokenChoice)
    assert all(isinstance(own, kind) for own, kind in zip(spelled.values(), kinds, strict=True))


def test_each_takes_its_place(engine):
    free = {"max_denoising_steps": 6, "confidence_threshold": 1e-9}
    assert [e.accepted_count for e in run(engine, acceptance=Surest(5), **free)] == [5] * 6
    assert [e.step for e in run(engine, stopping=After(3))] == [1, 2, 3]
    assert [e.finished for e in run(engine, stopping=After(3))] == [False, False, True]
    assert {e.temperature for e in run(engine, temperature_schedule=Constant(0.5), **free)} == {0.5}
    first, second, *_ = run(engine, token_choice=SureArgmax(), acceptance=Surest(CANVAS), **free)
    drawn = run(engine, acceptance=Surest(CANVAS), **free)[1].canvas  # the same noise, every draw accepted
    sure = mx.array(np.array(first.log_p) > -0.5)
    assert (second.canvas == mx.where(sure, first.draft, drawn)).all().item()


def test_a_choice_that_draws_nothing_takes_no_number(engine):
    noise = ReplayedNoise(0)
    run(engine, noise=noise, token_choice=Argmax(), max_denoising_steps=2)
    assert noise.draws == ["tokens", "tokens", "tokens"]


def test_a_strategy_sees_the_steps_before_it(engine):
    seen = []

    def watch(step):
        seen.append(step)
        return Surest(4)(step)

    events = run(engine, acceptance=watch, max_denoising_steps=5, confidence_threshold=1e-9)
    for number, step in enumerate(seen):
        assert (step.remaining, step.max_steps, len(step.earlier)) == (5 - number, 5, number)
        for earlier, event in zip(step.earlier, events, strict=False):
            for name in ("draft", "entropy", "accepted"):
                assert (getattr(earlier, name) == getattr(event, name)).all().item()


def test_given_positions_stay_whatever_a_rule_says(engine):
    canvas = [None, 9, None, 9]
    for event in run(engine, canvas=canvas, acceptance=Nothing(), max_denoising_steps=3):
        assert np.array(event.accepted)[0].tolist() == [token is not None for token in canvas] + [False] * (CANVAS - 4)
        assert np.array(event.canvas)[0][[1, 3]].tolist() == [9, 9]


def test_no_strategy_costs_a_second_host_synchronisation(engine, monkeypatch):
    """With four strategies of one's own a step is still started once, read once and never waited for otherwise."""
    started, read = [], []
    start, read_one = memory.start, state.Pending.read
    monkeypatch.setattr(memory, "start", lambda arrays: (started.append(1), start(arrays))[1])
    monkeypatch.setattr(state.Pending, "read", lambda self: (read.append(1), read_one(self))[1])
    stream = engine.stream(
        Request(
            [1, 2, 3],
            settings=GenerationConfig(
                max_new_tokens=CANVAS,
                max_denoising_steps=5,
                acceptance=Surest(4),
                stopping=After(5),
                temperature_schedule=Constant(0.5),
                token_choice=SureArgmax(),
            ),
        )
    )
    first = next(stream)  # behind the prefill, which does wait
    monkeypatch.setattr(mx, "eval", lambda *arrays: pytest.fail("a step must not wait"))
    events = [first, *(event for event in stream if isinstance(event, DenoisingStep))]
    assert len(events) == len(started) == len(read) == 5


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"acceptance": lambda step: step.entropy}, r"acceptance .* gave float32 \(1, 16\); bool \(1, 16\) is needed"),
        ({"acceptance": lambda step: step.entropy[:, :3] < 1}, r"gave bool \(1, 3\); bool \(1, 16\) is needed"),
        ({"stopping": lambda step: step.entropy < 1}, r"stopping .* gave bool \(1, 16\); bool \(1,\) is needed"),
        ({"token_choice": type("C", (), {"draws": True, "__call__": lambda s, step: step.entropy})()}, "token_choice"),
        ({"temperature_schedule": lambda remaining, steps: 0}, "temperature_schedule .* gave 0; a number > 0"),
        ({"temperature_schedule": lambda remaining, steps: None}, "temperature_schedule .* gave None"),
    ],
)
def test_a_wrong_answer_of_a_strategy_is_named(engine, settings, complaint):
    with pytest.raises(DGemmaError, match=complaint) as error:
        run(engine, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"acceptance": Surest}, "acceptance must be an object that can be called, or None"),
        ({"stopping": 3}, "stopping must be an object that can be called, or None, got 3"),
        ({"token_choice": lambda step: step.drawn}, "token_choice must be one of categorical, argmax"),
        ({"acceptance": Surest(2), "entropy_bound": 0.3}, r"entropy_bound is of no use beside acceptance=Surest\(c"),
        ({"temperature_schedule": Constant(1), "t_max": 0.9}, "t_max is of no use beside temperature_schedule"),
        ({"stopping": After(2), "stability_threshold": 2}, "stability_threshold is of no use beside stopping"),
    ],
)
def test_what_cannot_be_a_strategy_is_refused(settings, complaint):
    with pytest.raises(DGemmaError, match=complaint):
        GenerationConfig(**settings)


def test_they_are_merged_like_other_settings():
    checkpoint = GenerationConfig(entropy_bound=0.2, t_min=0.1, max_new_tokens=7)
    merged = GenerationConfig(acceptance=Surest(3)).over(checkpoint)
    assert (merged.acceptance, merged.t_min, merged.max_new_tokens) == (Surest(3), 0.1, 7)
    assert replace(merged, max_new_tokens=9).acceptance == Surest(3)
    assert merged.over(checkpoint).acceptance == Surest(3)
    assert GenerationConfig(entropy_bound=0.3).over(GenerationConfig()).acceptance is None


def test_settings_as_json():
    plain = GenerationConfig(eos_token_id=[1]).over(GenerationConfig(entropy_bound=0.2))
    assert GenerationConfig(**plain.to_dict()) == plain and "acceptance" not in plain.to_dict()
    told = GenerationConfig(acceptance=Surest(3), stopping=After(2), token_choice=SureArgmax()).to_dict()
    assert json.loads(json.dumps(told)) == told
    assert (told["acceptance"], told["token_choice"]) == ("Surest(count=3)", "SureArgmax()")
    assert not {"entropy_bound", "confidence_threshold", "stability_threshold"} & set(told)


def test_a_trace_and_its_report_tell_the_strategies(engine, tmp_path):
    settings = GenerationConfig(acceptance=Surest(3), stopping=After(2), max_new_tokens=CANVAS)
    request = Request([1, 2], settings=settings)
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    recorder.trace().save(tmp_path / "run.npz")
    trace = load_trace(tmp_path / "run.npz")
    assert trace.settings["acceptance"] == "Surest(count=3)" and len(trace.step) == 2
    assert "Surest(count=3)" in render(trace) and '"confidence_threshold":null' in render(trace)
    assert curves(trace).axes[1].get_legend() is None  # no threshold to draw


def test_samples_use_them_as_well(engine):
    events = run(engine, samples=3, acceptance=Surest(5), max_denoising_steps=3, confidence_threshold=1e-9)
    assert [e.accepted_count for e in events] == [15] * 3
    assert all(0 <= token < VOCABULARY for token in events[-1].draft.flatten().tolist())
