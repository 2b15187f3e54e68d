"""Texts that are written causally, or partly so: events, ends, thoughts and calls, and when that is done."""

import json

import mlx.core as mx
import pytest

from benchmarks.models import config_dict, write_random
from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request, load
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.text import generation, routing
from mlx_dgemma.text.events import TextCanvas, collect
from mlx_dgemma.text.reply import parse_reply
from mlx_dgemma.text.routing import goes_causal, is_rewritten
from mlx_dgemma.trace.recorder import Recorder
from tests.command import in_process
from tests.conftest import CANVAS, ReplayedNoise
from tests.text.gemma import gemma_tokenizer

TOOLS = [{"name": "look", "description": "d", "parameters": {"properties": {"at": {"type": "string"}}}}]
LENGTH, VOCABULARY = 64, 512  # of the scripted model


@pytest.fixture(scope="module")
def embedded():
    return Engine.load()


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A random checkpoint with the tokens of the published one's conversations."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "sliding_window": 32}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 16_384}
    folder = write_random(tmp_path_factory.mktemp("talker"), config_dict(LENGTH, **text))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 106, 50], "max_new_tokens": 256}')
    return Engine(load(folder)[0], gemma_tokenizer(), "random")


@pytest.fixture
def says(monkeypatch, talker):
    """Makes the causal mode say these ids, one a pass."""

    def script(ids):
        coming = iter([*ids, *[1] * 9])

        def logits(self, hidden):
            return 50.0 * (mx.arange(VOCABULARY) == next(coming)).astype(mx.float32)[None, None]

        monkeypatch.setattr(type(talker.model), "logits", logits)

    return script


def ids(text: str) -> list[int]:
    return gemma_tokenizer().encode(text, add_special_tokens=False)


def wants(mode: str = "causal", tokens: int = 3 * CANVAS, **fields):
    settings = GenerationConfig(
        max_new_tokens=tokens, max_denoising_steps=4, token_choice="argmax", eos_token_id=fields.pop("stops", [])
    )
    return Request(fields.pop("prompt", [3, 10, 17]), settings=settings, mode=mode, **fields)


def test_thoughts_and_calls_come_apart_as_ever(talker, says):
    written = [
        *ids("<|channel>thought\nwell\n<channel|>so"),
        *ids('<|tool_call>call:look{at:<|"|>it<|"|>}<tool_call|>'),
    ]
    says([*written, 50])
    events = list(talker.stream(Request("hi", tools=TOOLS, thinking=True, mode="causal")))
    result = collect(events)
    assert (result.text, result.thought, result.finish_reason) == ("so", "well", "tool_calls")
    assert [(call.name, call.arguments) for call in result.tool_calls] == [("look", {"at": "it"})]
    prompt = talker.prepare(Request("hi", tools=TOOLS, thinking=True)).ids
    assert parse_reply(talker.tokenizer, written, prompt=prompt, tools=TOOLS).tool_calls == result.tool_calls
    assert result.tokens == written and [event.canvas_index for event in events] == [0] * len(events)
    assert [len(event.canvas) for event in events[:-1]] == [routing.PROBE] * (len(events) - 1)


def test_a_stop_text_ends_it_over_two_spans(talker, says):
    says([*ids("abcdef STOP"), *ids(" more"), 106])
    result = talker.generate(Request("hi", stop=["f ST"], mode="causal"))
    assert (result.text, result.finish_reason, result.stop_text) == ("abcde", "stop", "f ST")


def test_a_stop_token_ends_it_and_is_no_text(talker, says):
    says([*ids("abcdefghijk"), 106, *ids("more")])
    result = talker.generate(Request("hi", mode="causal", causal_log_p=True))
    assert (result.text, result.finish_reason, result.stats.causal_tokens) == ("abcdefghijk", "stop", 11)
    assert len(result.causal_log_p) == len(result.log_p) == len(result.entropy) == len(result.tokens) == 11
    assert result.causal_log_p == pytest.approx([0] * 11, abs=1e-6)


def test_a_loop_ends_it(talker, says):
    says([*ids("abc"), *ids("x") * 1000])
    result = talker.generate(Request("hi", mode="causal"))
    assert result.finish_reason == "repetition" and LENGTH < len(result.tokens) <= 2 * LENGTH


def test_a_prompt_that_is_remembered_gives_the_same(embedded):
    from mlx_dgemma.text.prefixes import PrefixStore

    engine = Engine(embedded.model, embedded.tokenizer, prefixes=PrefixStore())
    request = Request("count 18 to 50", mode="causal", settings=GenerationConfig(max_new_tokens=20))
    first, second = engine.generate(request), engine.generate(request)
    assert first.tokens == second.tokens == embedded.generate(request).tokens
    assert first.stats.cached_tokens == 0 and second.stats.cached_tokens > 0


def test_a_seed_is_a_text_and_counts_tell_how_it_was_made(embedded):
    request = Request("count 18 to 50", seed=4, mode="causal", settings=GenerationConfig(max_new_tokens=20, t_max=3.0))
    first, second = embedded.generate(request), embedded.generate(request)
    assert first.tokens == second.tokens and len(first.tokens) == 20
    assert (first.steps_per_canvas, first.stats.canvases, first.stats.causal_tokens) == ([0], 1, 20)
    assert first.stats.tokens_per_forward == 1 and first.stats.tokens_per_second > 0


def test_it_ends_where_the_positions_do(model):
    for mode in ("causal", "auto"):
        result = Engine(model, None).generate(wants(mode, 500, prompt=[3, 10] * 232, causal_log_p=True))
        assert (result.finish_reason, len(result.tokens)) == ("length", 512 - 464)
        assert len(result.causal_log_p) == len(result.tokens)


def test_texts_of_all_modes_share_a_machine(model, monkeypatch):
    monkeypatch.setattr(generation, "goes_causal", lambda denoised, causal: True)
    monkeypatch.setattr(generation, "is_rewritten", lambda **_: False)
    requests = [
        wants(mode, prompt=[3, i], causal_log_p=i < 2) for i, mode in enumerate(("causal", "diffusion", "auto"))
    ]
    engine, canvases = Engine(model, None), {}
    for number, event in engine.stream_many(requests):
        assert not isinstance(event, Exception)
        if isinstance(event, TextCanvas):
            canvases.setdefault(number, []).append(event)
    for number, request in enumerate(requests):
        alone, together = engine.generate(request), collect(canvases[number])
        assert (together.tokens, together.steps_per_canvas) == (alone.tokens, alone.steps_per_canvas)
        assert together.causal_log_p == pytest.approx(alone.causal_log_p, abs=1e-4)
        assert bool(together.causal_log_p) == (number < 2)


@pytest.mark.parametrize(
    ("denoised", "causal", "expected"), [(10, 13.1, True), (10, 13, False), (10, 5, False), (0, 1, True)]
)
def test_the_causal_mode_goes_on_where_it_is_faster_by_a_margin(denoised, causal, expected):
    assert goes_causal(denoised, causal) is expected


@pytest.mark.parametrize(
    ("is_settled", "entropy", "expected"), [(True, 0.2, False), (True, 0.21, True), (False, 0.0, True)]
)
def test_a_canvas_is_written_again_where_it_did_not_settle_or_is_unsure(is_settled, entropy, expected):
    assert is_rewritten(is_settled=is_settled, mean_entropy=entropy) is expected


def routed(monkeypatch, model, *, is_faster: bool, is_bad: bool, **fields):
    rates = []
    monkeypatch.setattr(generation, "goes_causal", lambda *both: rates.append(both) or is_faster)
    monkeypatch.setattr(generation, "is_rewritten", lambda **_: is_bad)
    events = list(Engine(model, None).stream(wants("auto", **fields)))
    return events, collect(event for event in events if isinstance(event, TextCanvas)), rates


def test_what_is_faster_writes_to_the_end(model, monkeypatch):
    _, result, rates = routed(monkeypatch, model, is_faster=True, is_bad=False)
    assert [len(canvas) for canvas in result.canvases] == [CANVAS, 2 * CANVAS] and len(result.tokens) == 3 * CANVAS
    assert result.finish_reason == "length" and len(rates) == 1 and all(rate > 0 for rate in rates[0])
    greedy = Engine(model, None).generate(wants(tokens=2 * CANVAS, prompt=[3, 10, 17, *result.tokens[:CANVAS]]))
    assert result.tokens[CANVAS:] == greedy.tokens


def test_what_is_slower_leaves_its_tokens_and_the_choice_is_made_once(model, monkeypatch):
    events, result, rates = routed(monkeypatch, model, is_faster=False, is_bad=False)
    assert [len(canvas) for canvas in result.canvases] == [CANVAS, routing.PROBE, CANVAS, CANVAS]
    assert len(result.tokens) == 3 * CANVAS and result.finish_reason == "length" and len(rates) == 1
    shown = [event.canvas_index for event in events]
    assert shown == sorted(shown) and set(shown) == {0, 1, 2, 3}  # steps bear the number that their canvas will have


def test_canvases_that_are_not_believed_are_written_causally_in_their_place(model, monkeypatch):
    """Token for token what the causal mode alone writes, and the steps that came to nothing are counted."""
    events, result, _ = routed(monkeypatch, model, is_faster=False, is_bad=True, causal_log_p=True)
    assert result.tokens == Engine(model, None).generate(wants()).tokens
    assert [len(canvas) for canvas in result.canvases] == [CANVAS] * 3 and result.steps_per_canvas == [4, 4, 4]
    assert result.stats.steps == 12 == sum(isinstance(event, DenoisingStep) for event in events)
    assert len(result.causal_log_p) == 3 * CANVAS


def test_a_stop_token_in_the_first_canvas_ends_all(model, monkeypatch):
    free = Engine(model, None).generate(wants("diffusion", noise=ReplayedNoise(1)))
    stop = free.tokens[5]
    for reads in (False, True):
        _, result, rates = routed(
            monkeypatch, model, is_faster=True, is_bad=False, stops=[stop], noise=ReplayedNoise(1), causal_log_p=reads
        )
        assert (result.finish_reason, rates) == ("stop", []) and len(result.canvases) == 1
        assert len(result.causal_log_p) == (len(result.tokens) if reads else 0)


def test_a_template_is_read_whole_given_tokens_too(embedded):
    result = embedded.generate(Request("roman 1994", canvas="MCM{2}IV", causal_log_p=True))
    assert len(result.causal_log_p) == len(result.tokens) == 7 and result.log_p[0] == 0 > result.causal_log_p[0]
    scored = embedded.score(Request("roman 1994"), result.tokens, causal=True)
    assert result.causal_log_p == pytest.approx(scored.log_p, abs=1e-3)


def test_behind_a_thought_the_call_that_has_to_be_made_is_read_too(talker):
    settings = GenerationConfig(max_new_tokens=2 * LENGTH, max_denoising_steps=2)
    fields = dict(tools=TOOLS, tool_choice="look", thinking=True, settings=settings)
    plain, read = (talker.generate(Request("hi", **fields, causal_log_p=reads)) for reads in (False, True))
    assert plain.tokens == read.tokens and len(read.causal_log_p) == len(read.tokens)


STRATEGY = GenerationConfig(token_choice=type("Own", (), {"draws": False, "__call__": lambda self, step: step.draft})())


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"mode": "ar"}, "mode must be one of diffusion, causal, auto, got 'ar'"),
        ({"mode": "causal", "canvas": "{}"}, "mode 'causal' does not go with canvas"),
        ({"mode": "auto", "canvas": CanvasPlan(draft="x")}, "mode 'auto' does not go with canvas"),
        ({"mode": "causal", "samples": 2}, "does not go with samples"),
        ({"mode": "auto", "response_format": {"type": "json_object"}}, "does not go with response_format"),
        ({"mode": "causal", "tools": TOOLS, "tool_choice": "look"}, "a tool that has to be called"),
        ({"mode": "causal", "settings": STRATEGY}, "a token_choice of one's own"),
        ({"causal_log_p": 1}, "causal_log_p must be True or False"),
        ({"causal_log_p": True, "samples": 2}, "causal_log_p does not go with samples"),
        ({"causal_log_p": True, "response_format": {"type": "json_object"}}, "does not go with response_format"),
    ],
)
def test_what_does_not_go_together_is_one_line(fields, complaint):
    with pytest.raises(DGemmaError) as error:
        Request("x", **fields)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_no_trace_is_begun_of_what_has_no_steps(embedded):
    with pytest.raises(DGemmaError, match="as they were denoised"):
        Recorder(embedded, Request("roman 3", mode="causal"))


def test_the_command_line(capsys):
    code, out, _ = in_process(capsys, "--json", "--causal-log-p", "-q", "roman 1994")
    told = json.loads(out)
    assert code == 0 and told["text"] == "MCMXCIV" and len(told["causal_log_p"]) == len(told["tokens"]) == 7
    assert told["mean_causal_log_p"] == pytest.approx(sum(told["causal_log_p"]) / 7)
    code, out, err = in_process(capsys, "--mode", "causal", "--max-tokens", "12", "count 18 to 50")
    assert code == 0 and out.strip() and "steps:   0 and 12 tokens causally, 1.0 tokens per forward" in err
    assert "causal_log_p" not in json.loads(in_process(capsys, "--json", "-q", "roman 3")[1])
    for wrong in (["--causal-log-p"], ["--mode", "auto", "--trace", "x.npz"], ["--mode", "causal", "--choose", "a,b"]):
        assert in_process(capsys, *wrong, "roman 3")[0] == 2
