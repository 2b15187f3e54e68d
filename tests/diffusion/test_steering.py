"""Steered canvases: given tokens, drafts, templates, and the command line's options for them."""

import json

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma import CanvasPlan, Engine, GenerationConfig, Request, generate_text, load, stream_generate
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.reply import ReplyParser
from mlx_dgemma.text.template import given_end, parse_draft, parse_template
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import load_trace
from tests.command import in_process
from tests.conftest import CANVAS, VOCABULARY, ReplayedNoise

IDS = st.integers(3, VOCABULARY - 1)  # not the stop tokens 1 and 2


@pytest.fixture(scope="module")
def embedded():
    return load()


@given(st.lists(st.none() | IDS, min_size=1, max_size=2 * CANVAS + 3), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_clamped_tokens_are_in_the_output_always(model, canvas, seed):
    config = GenerationConfig(max_new_tokens=1, max_denoising_steps=3, eos_token_id=[])
    result = generate_text(model, None, [5, 6], config, canvas=canvas, noise=ReplayedNoise(seed))
    everything = [token for c in result.canvases for token in c]
    assert all(token in (None, got) for token, got in zip(canvas, everything, strict=False))
    assert len(everything) >= len(canvas)
    assert result.tokens == everything[: len(canvas)]


@pytest.mark.parametrize("canvases", [1, 3])
def test_an_all_clamped_canvas_costs_no_step(model, canvases):
    ids = [3 + i % 90 for i in range(canvases * CANVAS)]
    config = GenerationConfig(eos_token_id=[], max_new_tokens=1, max_denoising_steps=2)
    events = list(stream_generate(model, None, [5, 6], config, canvas=[*ids, 7, None]))
    committed = [e for e in events if not isinstance(e, DenoisingStep)]
    assert [e.steps for e in committed] == [0] * canvases + [2]
    assert {e.canvas_index for e in events if isinstance(e, DenoisingStep)} == {canvases}
    assert [token for e in committed for token in e.tokens][:-1] == [*ids, 7]


def test_clamped_positions_count_as_accepted_and_take_no_part_in_stopping(model):
    canvas = [None, *[9] * (CANVAS - 2), None]
    config = GenerationConfig(max_denoising_steps=4, confidence_threshold=1e-9)
    steps = [e for e in stream_generate(model, None, [5], config, canvas=canvas) if isinstance(e, DenoisingStep)]
    assert len(steps) == 4
    for step in steps:
        clamped = np.array(step.clamped)[0]
        assert clamped.tolist() == [token is not None for token in canvas]
        assert np.array(step.accepted)[0][clamped].all() and step.accepted_count >= CANVAS - 2
        assert (np.array(step.canvas)[0][clamped] == 9).all()
        entropy = np.array(step.entropy)[0]
        assert (entropy[clamped] == 0).all()
        assert step.mean_entropy == pytest.approx(entropy[~clamped].mean(), rel=1e-4)  # the free ones' alone
        assert (np.array(step.log_p)[0][clamped] == 0).all()


def test_what_is_free_is_denoised_around_what_is_given(embedded):
    model, tokenizer = embedded
    for template in ("one thousand {}", "{12} eight hundred {9}", "one {8} eight hundred forty-two"):
        plan = CanvasPlan(parse_template(tokenizer, template, model.generation_config.eos_token_id, 64))
        assert generate_text(model, tokenizer, "spell 1842", canvas=plan).text == "one thousand eight hundred forty-two"


@given(st.lists(st.sampled_from(["ab ", "c{ ", "}d", '{"k": "', "{3}", "{1}", "\\{2}"]), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_given_text_is_in_the_text_whatever_fills_the_gaps(embedded, parts):
    model, tokenizer = embedded
    template, config = "".join(parts), GenerationConfig(max_denoising_steps=2)
    plan = CanvasPlan(parse_template(tokenizer, template, model.generation_config.eos_token_id, 64))
    text, position = generate_text(model, tokenizer, "upper abc", config, canvas=plan).text, 0
    for part in parts:
        if part not in ("{3}", "{1}"):
            position = text.index(part.replace("\\{", "{"), position) + len(part.replace("\\{", "{"))


def test_stop_tokens_in_gaps_end_nothing():
    assert given_end([8, None, None, 9, 1, 0, 0], [1]) == 4
    assert given_end([8, None], [1]) == 1 and given_end([], [1]) == 0


def test_templates(embedded):
    tokenizer = embedded[1]
    a, b, brace = (tokenizer.encode(c, add_special_tokens=False)[0] for c in "ab{")
    pad = tokenizer.pad_token_id
    assert parse_template(tokenizer, "a{2}b", [1, 7], 8) == [a, None, None, b, 1, pad, pad, pad]
    assert parse_template(tokenizer, "a{2}b{}", [1], 8) == [a, None, None, b]
    assert parse_template(tokenizer, "a{2}", [], 8) == [a, None, None]
    assert parse_template(tokenizer, "{}", [1], 8) == []
    assert parse_template(tokenizer, "{a{1}", [1], 4) == [brace, a, None, 1]
    assert parse_template(tokenizer, "\\{12", [1], 2)[0] == brace
    assert len(parse_template(tokenizer, "a{9}", [1], 8)) == 16  # two canvases
    assert parse_draft(tokenizer, "ab", [1], 4) == [a, b, 1, pad]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [("", "is empty"), ("a{0}", "{0} holds no token"), ("{}a", "{} leaves the rest free and must stand at the end")],
)
def test_bad_templates_are_refused(embedded, template, complaint):
    with pytest.raises(DGemmaError, match=complaint.replace("{", "\\{")):
        parse_template(embedded[1], template, [1], 8)


def test_without_a_tokenizer_templates_are_refused():
    with pytest.raises(DGemmaError, match="no tokenizer files"):
        parse_template(None, "a", [1], 8)


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (CanvasPlan([VOCABULARY]), "token id 120 is outside the vocabulary"),
        (CanvasPlan([True]), "token id True"),
        (CanvasPlan(draft=[-1]), "token id -1"),
        (CanvasPlan(draft=[3] * (CANVAS + 1)), "the draft has 17 tokens, one canvas has 16"),
        (CanvasPlan(draft=[3], noise=1.5), "share of noise is 1.5"),
    ],
)
def test_bad_plans_are_refused_where_they_are_passed_in(model, plan, complaint):
    with pytest.raises(DGemmaError, match=complaint):
        stream_generate(model, None, [5], canvas=plan)


def test_a_draft_is_what_the_first_canvas_starts_from(model):
    draft, config = [7] * CANVAS, GenerationConfig(max_denoising_steps=1, max_new_tokens=2 * CANVAS)

    def firsts(plan):
        events = stream_generate(model, None, [5], config, canvas=plan, noise=ReplayedNoise(0))
        return [e.canvas[0].tolist() for e in events if isinstance(e, DenoisingStep)]

    whole, noise = firsts(CanvasPlan(draft=draft)), firsts(())
    assert whole[0] == draft and whole[1] != draft  # the second canvas starts from noise
    half = firsts(CanvasPlan(draft=draft, noise=0.5, seed=3))[0]
    kept = [token == 7 for token in half]
    assert sum(kept) >= CANVAS // 2 and [n for n, k in zip(half, kept, strict=True) if not k] == [
        n for n, k in zip(noise[0], kept, strict=True) if not k
    ]
    assert sum(kept) - CANVAS // 2 <= noise[0].count(7)
    assert firsts(CanvasPlan(draft=draft, noise=1.0)) == noise
    both = firsts(CanvasPlan(given=[None, 9], draft=draft))[0]
    assert both == [7, 9, *[7] * (CANVAS - 2)]


# The command line


def test_template_and_init_on_the_command_line(capsys):
    answer = "one thousand eight hundred forty-two\n"
    asked = ["--prompt", "spell 1842", "--quiet"]
    assert in_process(capsys, *asked, "--template", "{12} eight hundred {9}") == (0, answer, "")
    draft = ["--init", "one thousand eight hundred fifty-two"]
    assert in_process(capsys, *asked, *draft, "--noise", "0.5") == (0, answer, "")
    code, out, _ = in_process(capsys, *asked, "--template", "{12} eight hundred {9}", "--json")
    assert code == 0 and json.loads(out)["text"] + "\n" == answer


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--noise", "0.5"], 2, "--noise needs --init"),
        (["--init", "a", "--noise", "1.5"], 2, "--noise must be between 0 and 1, got 1.5"),
        (["--template", "{0}"], 1, "a gap {0} holds no token"),
        (["--init", "a" * 64], 1, "the draft has 64 tokens; give 1 to 63"),
        (["--init", ""], 1, "the draft has 0 tokens"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, code, complaint):
    got, out, err = in_process(capsys, "--prompt", "upper abc", "--quiet", *arguments)
    assert got == code and out == "" and complaint in err and err.count("\n") == 1


def test_a_trace_knows_what_was_clamped(embedded, tmp_path):
    model, tokenizer = embedded
    canvas = parse_template(tokenizer, "one {}", [1], 64)
    engine, request = Engine(model, tokenizer), Request("spell 1842", canvas=canvas)
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    recorder.trace().save(tmp_path / "run.npz")
    trace = load_trace(tmp_path / "run.npz")
    assert trace.clamped[:, 0].tolist() == [[i < 4 for i in range(64)]] * len(trace.step)
    assert mx.array(trace.accepted[trace.clamped]).all()


def test_a_thought_that_the_model_opens_in_a_gap_hides_nothing_that_is_given():
    class Vocabulary:
        def get_vocab(self):
            return {"<|channel>": 8, "<channel|>": 9}

        def convert_ids_to_tokens(self, ids):
            return list(map(str, ids))

        def decode(self, ids, skip_special_tokens=False):
            return "".join(map(str, ids))

    def shown(given):
        return ReplyParser(Vocabulary(), given=given).add([8, 5, 6, 9, 7]).content

    assert shown([None, None, 6]) == "67"
    assert shown([8, None, 6]) == "7"  # a thought of the user's own
    assert shown([]) == "7"
