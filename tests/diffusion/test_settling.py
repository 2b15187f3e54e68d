"""Settle and confirm: which positions a step computes, what wakes them, and that a full step has the last word."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request, Settling
from mlx_dgemma.diffusion.canvas import denoise_canvas
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.diffusion.settled import Settled, Told
from mlx_dgemma.diffusion.vocabulary import from_logits
from mlx_dgemma.diffusion.work import Work
from mlx_dgemma.tasks import HARD
from mlx_dgemma.tasks.embedded import draw_examples
from mlx_dgemma.text.events import TextCanvas, collect

C, V = 32, 12


class Scripted:
    """A denoiser whose argmax at a step and position is scripted, and how sure it is; it keeps what it computed."""

    def __init__(self, answers: np.ndarray, sharpness: np.ndarray):
        self.answers, self.sharpness, self.step = answers, sharpness, 0
        self.computed: list[list[int] | None] = []
        self.restless: int | None = None  # a position whose answer changes at every full step

    def begin(self, canvas, soft, slots=None):
        at = list(range(canvas.shape[1])) if slots is None else slots.at.tolist()
        assert canvas.shape[1] == len(at) and (soft is None or soft.shape[1] == len(at))
        self.computed.append(None if len(at) == C else at)
        step = min(self.step, len(self.answers) - 1)
        self.step += 1
        if self.restless is not None and slots is None:
            self.answers[step:, self.restless] = step % V
        target, sharp = mx.array(self.answers[step][at]), mx.array(self.sharpness[step][at])
        logits = (target[:, None] == mx.arange(V)) * sharp[:, None]
        return mx.broadcast_to(logits, (canvas.shape[0], *logits.shape)).astype(mx.float32)

    def finish(self, begun, query):
        return from_logits(begun, query, soft=begun / query.temperature)

    def cancel(self):
        pass


def denoised(denoiser: Scripted, batch: int = 1, **settings) -> list[DenoisingStep]:
    config = GenerationConfig(**settings)
    return list(denoise_canvas(denoiser, config, SeededNoise(0, V), (batch, C)))


def sure(steps: int, unsure: dict[int, list[int]] | None = None, target: np.ndarray | None = None) -> Scripted:
    """Sure of `target` everywhere, except of some positions until some step."""
    answers = np.tile(np.arange(C) % V if target is None else target, (steps, 1))
    sharpness = np.full((steps, C), 60.0)
    for until, positions in (unsure or {}).items():
        sharpness[:until, positions] = 0.0
    return Scripted(answers, sharpness)


def test_what_is_at_rest_is_not_computed_and_a_full_step_ends_the_canvas():
    denoiser = sure(12, {6: [3, 17]})
    events = denoised(denoiser, settling=Settling())
    assert denoiser.computed[:2] == [None, None]  # nothing can be as in the step before at the first one
    for at in denoiser.computed[2:6]:
        assert {3, 17} <= set(at) and len(at) == 2  # one tile of 32 / 16 positions
    assert denoiser.computed[-1] is None and events[-1].finished and events[-1].computed is None
    assert events[-1].draft.tolist() == [(np.arange(C) % V).tolist()]
    assert [e.computed for e in events] == [None if at is None else tuple(at) for at in denoiser.computed]
    assert [e.work.rows for e in events] == [C if at is None else len(at) for at in denoiser.computed]


def test_settled_positions_keep_their_entropy_draft_and_token():
    denoiser = sure(12, {6: [3, 17]})
    events = denoised(denoiser, settling=Settling())
    for before, event in itertools.pairwise(events):
        kept = [i for i in range(C) if event.computed is not None and i not in event.computed]
        for name in ("entropy", "draft", "log_p"):
            assert np.array_equal(np.array(getattr(event, name))[0, kept], np.array(getattr(before, name))[0, kept])
        assert np.array_equal(np.array(event.canvas)[0, kept], np.array(event.draft)[0, kept])


def test_a_failed_confirmation_wakes_what_changed_and_its_neighbours():
    denoiser = sure(30, {5: [1]})
    denoiser.answers[7:, 20] = 9  # what the confirming step finds: 20 has changed while it was not looked at
    events = denoised(denoiser, settling=Settling(neighbours=2))
    failed = next(i for i, e in enumerate(events) if i > 2 and e.computed is None)
    assert not events[failed].finished
    assert set(events[failed + 1].computed) == {18, 19, 20, 21, 22, *set(events[failed + 1].computed)}
    assert len(events[failed + 1].computed) == 6  # five of them fill three tiles of two
    assert events[-1].finished and events[-1].draft[0, 20].item() == 9


def test_after_too_many_failed_confirmations_all_steps_are_full():
    denoiser = sure(48, {4: [10]})
    denoiser.restless = 4
    events = denoised(denoiser, settling=Settling(failures=1), max_denoising_steps=30)
    partial = [i for i, e in enumerate(events) if e.computed is not None]
    confirming = [i for i in range(2, partial[-1]) if events[i].computed is None]
    assert len(confirming) == 1  # the first failure, after which it was tried once more
    assert len(events) == 30 and partial[-1] < 20  # from the second on, to the end


def test_the_last_step_is_full():
    denoiser = sure(12, {99: [5]})
    events = denoised(denoiser, settling=Settling(), max_denoising_steps=7)
    assert len(events) == 7 and events[-1].computed is None and events[-2].computed is not None


def test_two_rows_compute_what_one_of_them_needs():
    settled, no = Settled(Settling(), (2, C), C), np.zeros(2, bool)
    calm = np.ones((2, C), bool)
    calm[0, 4] = calm[1, 9] = False
    settled.learn(Told(calm, no, ~no, no * 0 + C, no, calm), is_last=False)
    assert settled.computed == [4, 9]
    calm[0, 4] = True
    settled.learn(Told(calm, no, ~no, no * 0 + C, np.array([True, False]), calm), is_last=False)
    assert 9 in settled.computed and len(settled.computed) == 2
    calm[0, 9], calm[1, 9] = False, True
    settled.learn(Told(calm, no, ~no, no * 0 + C, np.array([True, False]), calm), is_last=False)
    assert settled.computed is None  # what only a row asks for that is done


@given(st.data())
def test_whatever_the_denoiser_does_a_canvas_ends_in_a_full_step(data):
    steps = data.draw(st.integers(1, 14))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    answers = rng.integers(0, V, (steps, C))
    moving = rng.random((steps, C)) < data.draw(st.floats(0, 0.3))
    for step in range(1, steps):
        answers[step] = np.where(moving[step], answers[step], answers[step - 1])
    sharpness = np.where(rng.random((steps, C)) < 0.2, 3.0, 60.0)
    rule = Settling(
        steps=data.draw(st.integers(1, 2)),
        neighbours=data.draw(st.integers(0, 2)),
        failures=data.draw(st.integers(0, 3)),
    )
    events = denoised(Scripted(answers, sharpness), settling=rule, max_denoising_steps=16)
    assert events[-1].finished and events[-1].computed is None
    assert all(not e.finished for e in events[:-1])
    stop = (
        events[-1].mean_entropy < 0.005 and np.array_equal(events[-1].draft, events[-2].draft) if events[1:] else False
    )
    assert stop or events[-1].remaining == 1


def test_nothing_settles_where_nothing_is_calm_and_then_all_is_as_without():
    """With settling on and every position active, events are bit for bit what they are without."""
    rng = np.random.default_rng(3)
    answers, sharpness = rng.integers(0, V, (10, C)), np.full((10, C), 4.0)
    plain = denoised(Scripted(answers, sharpness), max_denoising_steps=8)
    same = denoised(Scripted(answers, sharpness), max_denoising_steps=8, settling=Settling(entropy=1e-12))
    assert len(plain) == len(same) == 8
    for one, other in zip(plain, same, strict=True):
        assert one.computed is None and other.computed is None
        for name in ("canvas", "draft", "entropy", "log_p", "accepted"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    "wrong",
    [
        {"entropy": 0},
        {"entropy": True},
        {"steps": 0},
        {"neighbours": -1},
        {"failures": 1.5},
        {"start": 0},
        {"start": 8},
        {"crop": 0},
    ],
)
def test_numbers_that_are_none(wrong):
    with pytest.raises(DGemmaError, match=f"settling: {next(iter(wrong))} must be"):
        Settling(**wrong)


def test_what_is_no_rule_is_refused():
    with pytest.raises(DGemmaError, match="settling must be a Settling or None"):
        GenerationConfig(settling=0.1)


def test_work_is_told_in_full_steps_of_the_published_model():
    full = Work(256, 256 * 1000, 256 * 1000)
    assert full.full_steps(256, 1000) == pytest.approx(1)
    assert (full + Work(64, 0, 0)).full_steps(256, 1000) == pytest.approx(1 + 0.678 / 4)


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def run(engine: Engine, prompt: str, seed: int = 0, settling: Settling | None = None, **request):
    settings = GenerationConfig(settling=settling)
    events = list(engine.stream(Request(prompt, settings=settings, seed=seed, **request)))
    steps = [e for e in events if isinstance(e, DenoisingStep)]
    return steps, collect([e for e in events if isinstance(e, TextCanvas)])


def test_the_model_with_every_position_active_is_bit_for_bit_what_it_was(engine):
    for prompt in ("sudoku 1..4..1.2....3.1", "count 18 to 50"):
        plain, text = run(engine, prompt)
        active, same = run(engine, prompt, settling=Settling(entropy=1e-30))
        assert text.text == same.text and text.log_p == same.log_p and len(plain) == len(active)
        assert all(np.array_equal(a.entropy, b.entropy) for a, b in zip(plain, active, strict=True))


def test_settled_sudokus_are_solved_with_less_work(engine):
    examples = draw_examples(HARD, 11, 8)
    plain, settled = ([run(engine, e.prompt, i, s) for i, e in enumerate(examples)] for s in (None, Settling()))
    rows = [sum(e.work.rows for steps, _ in runs for e in steps) for runs in (plain, settled)]
    right = [
        sum(e.task.check(e.prompt, r.text) for e, (_, r) in zip(examples, runs, strict=True))
        for runs in (plain, settled)
    ]
    assert rows[1] < 0.8 * rows[0] and right[1] >= right[0] - 1


PUZZLES = ["1..4..1.2....3.1", "..4......3.1.2..", "4....2..2......1"]


def test_given_tokens_stay_and_leave_the_computation(engine):
    steps, result = run(engine, "sudoku ............2431", settling=Settling(), canvas="1234{12}")
    assert result.text.startswith("1234") and steps[-1].computed is None
    computed = [position for e in steps for position in e.computed or ()]
    assert computed and sum(position < 4 for position in computed) <= len(computed) / 8


def test_samples_settle_together(engine):
    request = Request("sudoku 1..4..1.2....3.1", settings=GenerationConfig(settling=Settling()), samples=3)
    samples = engine.samples(request)
    assert [s.result.text for s in samples] == [engine.generate(Request(request.prompt)).text] * 3


def test_rows_that_share_steps_settle_too(engine):
    requests = [
        Request(f"sudoku {puzzle}", settings=GenerationConfig(settling=settling), seed=i)
        for i, puzzle in enumerate(PUZZLES)
        for settling in (None, Settling())
    ]
    texts: dict[int, str] = {}
    for i, event in engine.stream_many(requests):
        if isinstance(event, TextCanvas):
            texts[i] = texts.get(i, "") + event.text
    assert [texts[i] for i in range(len(requests))] == [engine.generate(request).text for request in requests]


def test_a_short_answer_needs_no_more_positions_than_it_begins_with(engine):
    steps, result = run(engine, "roman 1994", settling=Settling(start=0.5))
    assert result.text == "MCMXCIV" and len(result.canvases[0]) == 64
    assert max(e.work.rows for e in steps) == 32 and steps[-1].work.rows == 32  # the confirming step, too
    assert all(np.array_equal(e.draft[0, 32:], mx.full((32,), e.draft[0, -1].item())) for e in steps)


def test_a_long_answer_grows_to_the_whole_canvas(engine):
    steps, result = run(engine, "count 18 to 50", settling=Settling(start=0.25))
    _, expected = run(engine, "count 18 to 50")
    assert result.text == expected.text and len(result.canvases) == len(expected.canvases) == 2
    rows = [e.work.rows for e in steps if e.canvas_index == 0]
    assert rows[0] == 16 and 32 in rows and rows[-1] == 64


@given(st.integers(3, 9), st.sampled_from([0.125, 0.5, 0.96]), st.integers(0, 10**6))
def test_a_canvas_without_an_end_is_whole_at_its_last_step(limit, start, seed):
    rng = np.random.default_rng(seed)
    denoiser = Scripted(rng.integers(1, V, (limit, C)), np.full((limit, C), 8.0))  # id 0 ends the text
    settings = {"settling": Settling(start=start), "max_denoising_steps": limit, "eos_token_id": [0]}
    events = denoised(denoiser, **settings)
    assert events[0].work.rows == math.ceil(start * C) and events[-1].work.rows == C and events[-1].computed is None


def test_what_is_steered_or_has_no_end_begins_whole():
    for settings in ({"eos_token_id": []}, {"eos_token_id": [0], "max_denoising_steps": 2}):
        assert denoised(sure(4), settling=Settling(start=0.25), **settings)[0].work.rows == C


def with_end(steps: int, end: int) -> Scripted:
    """Sure of a text that ends at a position, with padding behind it; ids 0 and 1 are the end and padding."""
    target = np.r_[np.arange(end) % (V - 2) + 2, 0, np.ones(C - end - 1, int)]
    denoiser = sure(steps, target=target)
    denoiser.sharpness[:5, 3] = 2.0
    return denoiser


ENDS = {"eos_token_id": [0], "settling": Settling(crop=0.1)}


def test_what_stands_behind_a_certain_end_leaves_the_canvas():
    events = denoised(with_end(12, 9), **ENDS)
    assert events[0].work.rows == C and events[1].computed == tuple(range(12))  # ten, one more, and a whole tile
    assert denoised(with_end(12, 9), eos_token_id=[0], settling=Settling(crop=0.5))[1].work.rows == 16
    assert events[-1].finished and events[-1].computed == tuple(range(12))  # the confirming step's positions
    assert events[-1].draft.tolist() == [with_end(1, 9).answers[0].tolist()]


def test_nothing_leaves_while_something_behind_the_end_is_not_certain():
    denoiser = with_end(12, 9)
    denoiser.sharpness[:2, 20] = 3.0
    rows = [event.work.rows for event in denoised(denoiser, **ENDS)]
    assert rows[:2] == [C, 24] and max(rows[3:]) <= 12


def test_what_has_left_comes_back_when_the_end_is_gone():
    denoiser = with_end(30, 9)
    denoiser.answers[2:, 9] = 5  # the text goes on
    denoiser.answers[2:, 10:] = 7
    denoiser.sharpness[2:8, 4] = 2.0
    events = denoised(denoiser, **ENDS, max_denoising_steps=20)
    assert events[1].work.rows == 12 and events[-1].work.rows == C and events[-1].computed is None
    assert events[-1].draft[0, 9:].tolist() == [5] + [7] * (C - 10)


def test_nothing_leaves_a_canvas_that_is_steered(engine):
    steps, result = run(engine, "roman 1994", settling=Settling(crop=0.1), canvas="M{20}")
    assert steps[0].work.rows == 64 and steps[-1].computed is None and result.text.startswith("M")


def test_cropped_answers_are_what_they_were_with_less_work(engine):
    for prompt in ("roman 1994", "spell 1842", "upper hello world", "count 18 to 50"):
        plain, expected = run(engine, prompt)
        steps, result = run(engine, prompt, settling=Settling(crop=0.5))
        assert result.text == expected.text
        assert result.stats.full_steps < expected.stats.full_steps
        assert sum(e.work.rows for e in steps) < sum(e.work.rows for e in plain)
