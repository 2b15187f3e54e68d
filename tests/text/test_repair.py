"""Repair: who is a suspect, and that a canvas only ever becomes likelier to the causal mode."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text import repair
from mlx_dgemma.text.repair import MOST, suspects
from mlx_dgemma.trace.recorder import Recorder
from tests.conftest import CANVAS, WINDOW, ReplayedNoise

PROMPT = [3, 10, 17, 5, 99]


def written(model, *, canvases: int = 1, seed: int = 3, **fields):
    settings = GenerationConfig(max_new_tokens=canvases * CANVAS, max_denoising_steps=5, eos_token_id=[])
    request = Request(PROMPT, settings=settings, noise=ReplayedNoise(seed), causal_log_p=True, **fields)
    return Engine(model, None).generate(request)


def test_suspects_are_not_believed_and_not_settled():
    gap = np.array([9.0, 9.0, 9.0, 9.0, 7.0, 20.0, 0.0, 8.0])
    changed = np.array([True, False, False, True, True, False, True, False])
    entropy = np.array([0.0, 0.0, 2.0, 0.0, 2.0, 3.0, 2.0, 0.0])  # the median is 1
    free = np.array([True, True, True, False, True, True, True, True])
    # 1 and 7 are settled, 3 is given, 4 is no more than GAP less likely, 6 is believed; the least believed comes first
    assert suspects(gap, changed, entropy, free).tolist() == [5, 0, 2]
    assert suspects(np.arange(100) + 8.0, np.ones(100, bool), np.zeros(100), np.ones(100, bool)).tolist() == list(
        range(99, 99 - MOST, -1)
    )


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, 4 * WINDOW])
def test_a_peek_is_what_encoding_gives_and_leaves_the_prefix(model, length):
    caches = [model.make_cache() for _ in range(2)]
    for cache in caches:
        prefill(model, mx.array([[(7 * i + 3) % 120 for i in range(length)]]), cache)
    canvas = mx.array([[(5 * i + 1) % 120 for i in range(CANVAS)]])
    before = model.denoise(canvas, caches[0])
    mx.eval(before)
    peeked = model.logits(model.peek(canvas, caches[0]))
    mx.eval(peeked)
    assert caches[0].length == length and mx.array_equal(model.denoise(canvas, caches[0]), before)
    assert mx.array_equal(peeked, model.next_token_logits(canvas, caches[1]))


def test_nothing_changes_where_all_is_believed(model, monkeypatch):
    monkeypatch.setattr(repair, "GAP", 1e9)
    plain, kept = written(model, canvases=3), written(model, canvases=3, repair=True)
    assert (plain.canvases, plain.log_p, plain.steps_per_canvas) == (kept.canvases, kept.log_p, kept.steps_per_canvas)
    assert plain.causal_log_p == kept.causal_log_p


def test_a_canvas_only_becomes_likelier_and_only_where_it_was_suspected(model, monkeypatch):
    monkeypatch.setattr(repair, "MOST", 5)
    changed = []
    for seed in range(8):
        plain, repaired = written(model, seed=seed), written(model, seed=seed, repair=True)
        changed.append(sum(a != b for a, b in zip(plain.tokens, repaired.tokens, strict=True)))
        touched = sum(a != b for a, b in zip(plain.log_p, repaired.log_p, strict=True))
        assert changed[-1] <= touched <= 5
        assert (sum(repaired.causal_log_p) > sum(plain.causal_log_p)) == (changed[-1] > 0)
    assert max(changed) > 1


def test_a_repaired_canvas_stands_in_the_prefix(model):
    plain, one, two = written(model), written(model, repair=True), written(model, canvases=2, repair=True)
    assert two.tokens[:CANVAS] == one.tokens != plain.tokens
    assert one.steps_per_canvas == [plain.steps_per_canvas[0] + repair.STEPS] == [one.stats.steps]
    scored = Engine(model, None).score(Request(PROMPT), two.tokens, causal=True)
    assert two.causal_log_p == pytest.approx(scored.log_p, abs=1e-3)


def test_what_came_out_worse_is_not_kept(model, monkeypatch):
    monkeypatch.setattr(repair, "GAP", 1.0)
    judge, plain = repair.Causal.judge, written(model)
    assert written(model, repair=True).tokens != plain.tokens
    monkeypatch.setattr(
        repair.Causal,
        "judge",
        lambda self, ids: [own if ids == plain.tokens else [-99.0] * CANVAS for own in judge(self, ids)],
    )
    kept = written(model, repair=True)
    assert kept.tokens == plain.tokens and kept.steps_per_canvas[0] == plain.steps_per_canvas[0] + repair.STEPS


def test_given_tokens_stay_and_its_steps_are_not_shown(model, monkeypatch):
    monkeypatch.setattr(repair, "GAP", 0.0)
    canvas = [7 if i % 2 else None for i in range(CANVAS)]
    assert written(model, repair=True, canvas=canvas).tokens[1::2] == [7] * (CANVAS // 2)
    settings = GenerationConfig(max_new_tokens=CANVAS, max_denoising_steps=5, eos_token_id=[])
    events = list(Engine(model, None).stream(Request(PROMPT, settings=settings, noise=ReplayedNoise(2), repair=True)))
    assert [event.step for event in events if isinstance(event, DenoisingStep)] == list(range(1, len(events)))
    assert events[-1].steps == len(events) - 1 + repair.STEPS


def test_what_it_does_not_go_with(model):
    for fields in ({"samples": 2}, {"mode": "auto"}, {"alternatives": 2}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(DGemmaError, match="does not go with"):
            Request("x", repair=True, **fields)
    with pytest.raises(DGemmaError, match="as they were denoised"):
        Recorder(Engine(model, None), Request([1], repair=True))
