"""Texts that share their steps: each is what it is alone, and none waits for another's end or goes down with it."""

import mlx.core as mx
import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.diffusion import denoiser
from mlx_dgemma.diffusion.denoiser import Forward, ModelDenoiser, together
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.diffusion.vocabulary import Query, predict
from mlx_dgemma.errors import OutOfMemory
from mlx_dgemma.model import fused, memory, prefill
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text import scheduler as room
from mlx_dgemma.text.events import TextCanvas, collect
from mlx_dgemma.text.prefixes import PrefixStore
from mlx_dgemma.text.scheduler import Scheduler

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
MIXED = [
    Request("count 18 to 50"),
    Request("roman 1994", seed=5, settings=GenerationConfig(token_choice="argmax")),
    Request("sudoku 1..4..1.2....3.1", seed=2, settings=GenerationConfig(max_denoising_steps=4)),
    Request("spell 1842", stop=["hundred"]),
    Request("upper abc", canvas="A{3} and {2}"),
    Request("upper abcdef", alternatives=3),
    Request("upper abcd", alternatives=5),
    Request("reverse hello", settings=GenerationConfig(t_max=2.0, t_min=1.0, entropy_bound=3.0)),
    Request("spell 42", settings=GenerationConfig(fast=True)),
    Request("count 20 to 50", settings=GenerationConfig(fast=True)),
    Request("sort 5 3 1", settings=GenerationConfig(soft_embedding_cutoff=10.0)),
    Request("roman 7", response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": False}}),
]


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def all_of(engine, requests, **options):
    canvases, steps = {}, {}
    for number, event in engine.stream_many(requests, **options):
        assert not isinstance(event, Exception), event
        (canvases if isinstance(event, TextCanvas) else steps).setdefault(number, []).append(event)
    return [collect(canvases[number]) for number in range(len(requests))], steps


@pytest.mark.parametrize("rows", [1, 4])
def test_each_text_is_what_it_is_alone(engine, rows):
    together_, steps = all_of(engine, MIXED, max_rows=rows)
    for number, (request, result) in enumerate(zip(MIXED, together_, strict=True)):
        events = list(engine.stream(request))
        alone = collect(event for event in events if isinstance(event, TextCanvas))
        assert (result.text, result.tokens, result.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)
        assert result.steps_per_canvas == alone.steps_per_canvas and result.tool_calls == alone.tool_calls
        for got, want in zip(result.alternatives, alone.alternatives, strict=True):
            assert [own[0] for own in got[:1]] == [own[0] for own in want[:1]] and len(got) == request.alternatives
            assert [own[1] for own in got] == pytest.approx([own[1] for own in want], abs=0.02)
        drafts = [event.draft.tolist() for event in events if isinstance(event, DenoisingStep)]
        assert [event.draft.tolist() for event in steps.get(number, [])] == drafts


def forwards(model, lengths, queries):
    made = []
    for i, (length, query) in enumerate(zip(lengths, queries, strict=True)):
        cache = model.make_cache()
        prefill.prefill(model, mx.random.randint(0, 90, (1, length), key=mx.random.key(i)), cache)
        ids = mx.random.randint(0, 90, (1, model.config.canvas_length), key=mx.random.key(50 + i))
        soft = (
            None
            if i % 3 == 0
            else mx.random.normal((1, *ids.shape[1:], model.config.hidden_size), key=mx.random.key(i))
        )
        made.append(Forward(ModelDenoiser(model, cache), ids, soft))
        made[-1].query = query
    return made


def query(temperature, seed=None, wants_soft=True, shape=(1, 64)):
    u = None if seed is None else mx.random.uniform(shape=shape, key=mx.random.key(seed))
    return Query(temperature, u, wants_soft)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_rows_of_one_pass_are_the_passes_alone(engine, on_cpu, monkeypatch):
    """Prefixes shorter and longer than the window, temperatures, draws and wishes of each row's own."""
    model = engine.model
    monkeypatch.setattr(denoiser, "LANES_FROM", 4 if on_cpu else 99)
    lengths = [3, 40, 700, 130, 12]
    queries = [query(0.8, 1), query(0.4), query(0.55, 2, False), query(1.7, 3), query(0.8, 4)]
    shared, alone = forwards(model, lengths, queries), forwards(model, lengths, queries)
    together(shared)
    for own, other in zip(shared, alone, strict=True):
        other.advance()
        a, b = own.prediction, other.prediction
        assert mx.array_equal(a.argmax, b.argmax) and mx.array_equal(a.proposal, b.proposal)
        for x, y in ((a.entropy, b.entropy), (a.log_p, b.log_p)):
            assert mx.allclose(x, y, atol=2e-4)
        assert (a.soft is None) == (b.soft is None)
        assert a.soft is None or mx.allclose(a.soft, b.soft, atol=2e-4)
        for layer, twin in zip(own.denoiser.cache.layers, other.denoiser.cache.layers, strict=True):
            assert layer.length == twin.length
            assert mx.allclose(layer.keys[:, :, : layer.length], twin.keys[:, :, : twin.length], atol=1e-6)


def test_compiled_helpers_take_a_temperature_for_each_row():
    """What a GPU runs, whose traces are of one temperature first."""
    x = mx.random.normal((3, 4, 40), key=mx.random.key(0))
    maximum, cap = x.max(axis=-1, keepdims=True) / 0.4, mx.array(30.0)
    for name in ("tempered_exp", "tempered_max"):
        plain, compiled, _ = fused.HELPERS[name]
        first = maximum if name == "tempered_exp" else maximum - 5
        for temperature in (mx.array(0.7), mx.array([0.4, 0.8, 1.5])[:, None, None], mx.array(0.5)):
            got = compiled(
                *((x, first, cap, temperature) if name == "tempered_exp" else (first, first, cap, temperature))
            )
            want = plain(
                *((x, first, cap, temperature) if name == "tempered_exp" else (first, first, cap, temperature))
            )
            for a, b in zip(*((got, want) if isinstance(got, tuple | list) else ([got], [want])), strict=True):
                assert a.shape == b.shape and mx.allclose(a, b, atol=1e-5)


def test_the_vocabulary_in_small_blocks_is_the_same(engine):
    """Several rows take it in smaller blocks, so that they need no more memory."""
    own = forwards(engine.model, [5], [query(0.8, 1)])[0]
    hidden = engine.model.denoise_hidden(own.canvas, [own.denoiser.cache])
    for block in (16, 48, 8192):
        found = predict(hidden, own.denoiser.table, own.query, block)
        whole = predict(hidden, own.denoiser.table, own.query)
        assert mx.array_equal(found.proposal, whole.proposal) and mx.allclose(found.entropy, whole.entropy, atol=1e-5)


class Passes:
    """How many rows each pass of the denoiser had."""

    def __init__(self, monkeypatch):
        self.rows, denoise = [], DiffusionGemma.denoise_hidden
        monkeypatch.setattr(
            DiffusionGemma, "denoise_hidden",
            lambda m, canvas, caches, *own: (self.rows.append(len(caches)), denoise(m, canvas, caches, *own))[1],
        )  # fmt: skip


def test_canvases_share_their_steps(engine, monkeypatch):
    monkeypatch.setattr(denoiser, "LANES_FROM", 99)
    passes = Passes(monkeypatch)
    settings = GenerationConfig(max_denoising_steps=6, confidence_threshold=1e-9, max_new_tokens=64)
    results, _ = all_of(engine, [Request("roman 1994", seed=seed, settings=settings) for seed in range(4)])
    assert sum(result.stats.steps for result in results) == 24
    assert sum(passes.rows) == 24 and passes.rows.count(4) >= 3 and len(passes.rows) <= 10


def begun(engine, steps: int) -> tuple[Scheduler, int]:
    """A scheduler with a text that takes so many steps and has made its first one, and the text's ticket."""
    slow = GenerationConfig(
        max_denoising_steps=steps, confidence_threshold=1e-9, stability_threshold=steps - 1, max_new_tokens=64
    )
    scheduler = Scheduler(engine.prepare)
    ticket, _ = scheduler.add(Request("roman 1994", settings=slow))
    while not any(isinstance(event, DenoisingStep) for _, event in scheduler.advance()):
        pass
    return scheduler, ticket


def test_one_that_comes_later_does_not_wait_for_the_others_end(engine):
    """Its first canvas begins while they are in the middle of theirs."""
    (scheduler, first), seen = begun(engine, steps=40), []
    second, _ = scheduler.add(Request("roman 3"))
    while not scheduler.is_idle:
        seen += [(ticket, type(event)) for ticket, event in scheduler.advance()]
    assert seen.index((second, TextCanvas)) < seen.index((first, TextCanvas))
    assert seen[: seen.index((second, DenoisingStep))].count((first, DenoisingStep)) <= 2


def test_a_long_prompt_is_encoded_between_the_others_steps(engine, monkeypatch):
    monkeypatch.setattr(prefill.cpu, "PREFILL_CHUNK", 64)
    (scheduler, first), seen = begun(engine, steps=30), []
    long, length = scheduler.add(Request("upper " + "abc " * 250))
    assert length > 8 * 64
    while not scheduler.is_idle:
        seen += [(ticket, type(event)) for ticket, event in scheduler.advance()]
    before = seen[: seen.index((long, DenoisingStep))]
    assert length // 64 - 2 <= before.count((first, DenoisingStep)) <= length // 64 + 2  # one behind each chunk


def test_a_cancelled_text_ends_between_chunks_of_its_prompt(engine, monkeypatch):
    monkeypatch.setattr(prefill.cpu, "PREFILL_CHUNK", 64)
    scheduler, encoded, encode = Scheduler(engine.prepare), [], DiffusionGemma.encode
    monkeypatch.setattr(
        DiffusionGemma, "encode", lambda m, ids, c: (encoded.append(ids.shape[1]), encode(m, ids, c))[1]
    )
    ticket, _ = scheduler.add(Request("upper " + "abc " * 250))
    other, _ = scheduler.add(Request("roman 3"))
    for _ in range(3):
        scheduler.advance()
    scheduler.cancel(ticket)
    cancelled_at = len(encoded)
    told = [event for _ in range(200) for event in scheduler.advance()]
    assert {number for number, _ in told} == {other} and scheduler.is_idle
    assert cancelled_at <= 3 and sum(encoded[cancelled_at:]) < 64


def test_an_error_in_one_text_leaves_the_others(engine):
    class Bad:
        def __call__(self, step):
            if step.remaining < 46:
                raise DGemmaError("it is broken")
            return step.entropy < 0.1

    requests = [
        Request("roman 1994"),
        Request("roman 3", settings=GenerationConfig(acceptance=Bad(), stability_threshold=9)),
        Request("upper abc"),
    ]
    ends = {}
    for number, event in engine.stream_many(requests):
        ends[number] = event
    assert isinstance(ends[1], DGemmaError) and "broken" in str(ends[1])
    assert ends[0].finish_reason == ends[2].finish_reason == "stop"


def test_what_cannot_be_asked_is_told_beside_what_can(engine):
    events = list(engine.stream_many([Request(""), Request("roman 3"), Request("x" * 9000)]))
    refused = {number: str(event) for number, event in events if isinstance(event, DGemmaError)}
    assert set(refused) == {0, 2} and "max_position_embeddings" in refused[2]
    assert [event.text for number, event in events if number == 1 and isinstance(event, TextCanvas)] == ["III"]


def test_an_error_of_ours_is_raised(engine):
    class Wrong:
        def __call__(self, step):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(engine.stream_many([Request("roman 3", settings=GenerationConfig(acceptance=Wrong()))]))


def test_memory_that_runs_out_in_a_shared_step_ends_those_that_shared_it(engine, monkeypatch):
    def fails(forwards):
        raise RuntimeError(
            "[metal::malloc] Attempting to allocate 9 bytes which exceeds the maximum allowed buffer size"
        )

    scheduler = Scheduler(engine.prepare)
    tickets = {scheduler.add(Request("roman 3"))[0], scheduler.add(Request("roman 4"))[0]}
    with monkeypatch.context() as patch:
        patch.setattr(room, "together", fails)
        told = []
        while not scheduler.is_idle:
            told += scheduler.advance()
    assert {ticket for ticket, _ in told} == tickets and all(isinstance(event, OutOfMemory) for _, event in told)
    scheduler.add(Request("roman 3"))
    while not scheduler.is_idle:
        told = scheduler.advance() or told
    assert told[-1][1].text == "III"


def test_texts_that_memory_has_no_room_for_wait(engine, monkeypatch):
    passes = Passes(monkeypatch)
    monkeypatch.setattr(memory, "total", lambda: engine.model.nbytes + memory.MARGIN + 1)
    results, _ = all_of(engine, [Request("roman 3"), Request("roman 4"), Request("roman 5")])
    assert [result.text for result in results] == ["III", "IV", "V"] and max(passes.rows) == 1


def test_requests_are_asked_for_as_rows_become_free(engine):
    asked = []

    def requests():
        for number in range(6):
            asked.append(number)
            yield Request(f"roman {number + 1}")

    stream = engine.stream_many(requests(), max_rows=2)
    next(event for event in stream)
    assert asked == [0, 1]
    assert len([1 for _, event in stream if isinstance(event, TextCanvas)]) == 6 and asked == [*range(6)]


def test_a_stream_that_is_closed_leaves_nothing_behind(engine):
    stream = engine.stream_many([Request("count 18 to 50"), Request("roman 3")])
    next(stream)
    stream.close()
    assert engine.generate(Request("roman 3")).text == "III"


def test_prompts_that_begin_alike_are_remembered(engine):
    remembering = Engine(engine.model, engine.tokenizer, prefixes=PrefixStore())
    turn = [{"role": "user", "content": "upper " + "abc " * 40}]
    list(remembering.stream_many([Request(turn)]))
    longer = [*turn, {"role": "assistant", "content": "ABC"}, {"role": "user", "content": "roman 3"}]
    results, _ = all_of(remembering, [Request(longer), Request(turn)])
    assert all(result.stats.cached_tokens > 50 for result in results)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True])
def test_a_number_of_rows_that_is_none(engine, rows):
    with pytest.raises(DGemmaError, match="at least one text"):
        list(engine.stream_many([Request("roman 3")], max_rows=rows))


def test_samples_are_requests_of_their_own(engine):
    [(number, event)] = engine.stream_many([Request("roman 3", samples=2)])
    assert number == 0 and "give a request to each" in str(event)
