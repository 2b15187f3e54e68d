"""What is remembered of prompts: the same numbers as a cold run, byte for byte, however conversations go."""

import threading

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.models import config_dict, write_random
from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request, load
from mlx_dgemma.model.prefill import prefill, segments
from mlx_dgemma.text import prefixes
from mlx_dgemma.text.prefixes import PrefixStore, common, turn_ends
from tests.text.gemma import gemma_tokenizer

WINDOW, CANVAS = 8, 16  # a window smaller than a canvas
SETTINGS = GenerationConfig(max_new_tokens=CANVAS, max_denoising_steps=2, eos_token_id=[])
OPEN, CLOSE, RESULT = 105, 106, 51


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    text = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "sliding_window": WINDOW}
    text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return load(write_random(tmp_path_factory.mktemp("model"), config_dict(CANVAS, **text)))[0]


def logits(model, cache) -> mx.array:
    return model.denoise(mx.arange(CANVAS)[None], cache)


class Watched:
    """Which parts of prompts were encoded."""

    def __init__(self, monkeypatch):
        self.parts: list[list[int]] = []

        def watched(model, ids, sights, cache, **options):
            self.parts.append(list(ids))
            return segments(model, ids, sights, cache, **options)

        monkeypatch.setattr(prefixes, "segments", watched)


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def cold(model, parts) -> mx.array:
    """Logits behind a prompt that was encoded in these parts, with nothing remembered."""
    cache = model.make_cache()
    for part in parts:
        prefill(model, mx.array([part]), cache)
    return logits(model, cache)


# a conversation is turned into another: kept to a length, and gone on with
STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 40), st.integers(0, 9)), max_size=6)


@given(STEPS, st.sampled_from([None, 0, 9_000, 40_000]))
@settings(max_examples=60, deadline=None)
def test_logits_are_those_of_a_cold_run_in_the_same_parts(model, steps, budget):
    store, prompts = PrefixStore(budget), [([1, 2, 3], [[1, 2, 3]])]
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        for which, kept, added, seed in steps:
            before, _ = prompts[which % len(prompts)]
            ids = [*before[:kept], *((7 * seed + 3 * i) % 500 for i in range(added))]
            ends = {len(ids) // 2, len(ids) - 1} - {0}
            watched.parts.clear()
            cache, cached = store.prefix(model, ids, ends)
            assert cached + sum(map(len, watched.parts)) == len(ids) == cache.length
            # how the remembered part was encoded: as the prompts that it is from were
            parts = next(
                (own for prompt, own in prompts[::-1] if ids[:cached] == prompt[:cached] and _cut(own, cached)), []
            )
            parts = [*(_cut(parts, cached) or []), *watched.parts]
            assert mx.array_equal(logits(model, cache), cold(model, parts))
            prompts.append((ids, parts))
            assert store.nbytes <= (prefixes.default_budget(model) if budget is None else budget)


def _cut(parts, length):
    """The parts that make up the first tokens of a prompt, if a part ends there."""
    found, total = [], 0
    for part in parts:
        if total == length:
            break
        found, total = [*found, part], total + len(part)
    return found if total == length else None


def conversation(turns: int) -> list[int]:
    """A system turn, and so many questions, the last without its answer."""
    ids = [2, OPEN, 9, *range(200, 230), CLOSE]
    for turn in range(turns):
        ids += [OPEN, 10, *range(300 + turn, 310 + turn), CLOSE, OPEN, 11]
        ids += [*range(400, 405), CLOSE] if turn + 1 < turns else []
    return ids


def test_a_new_turn_encodes_what_is_new(model, watched):
    store, tokenizer = PrefixStore(), gemma_tokenizer()
    for turns in range(1, 5):
        ids = conversation(turns)
        watched.parts.clear()
        _, cached = store.prefix(model, ids, turn_ends(tokenizer, ids))
        assert cached == (0 if turns == 1 else len(conversation(turns - 1)) - 2)
        assert sum(map(len, watched.parts)) == len(ids) - cached
    assert len(store.entries) == 1  # one conversation, whose full layers are there once
    ends = [len(conversation(turns)) - 2 for turns in (3, 4)]
    assert sorted(store.entries[0].ends) == [1 + 33, *ends]  # behind the system's turn, and the last two
    assert len(store.entries[0].ends) == prefixes.ENDS


def test_conversations_share_the_systems_turn_and_an_edit_goes_back_one(model):
    store, tokenizer = PrefixStore(), gemma_tokenizer()
    first = conversation(3)
    store.prefix(model, first, turn_ends(tokenizer, first))
    other = [*first[:34], OPEN, 10, 499, CLOSE, OPEN, 11]
    assert store.prefix(model, other, turn_ends(tokenizer, other))[1] == 34
    again = [*conversation(4)[:-4], 498, CLOSE, OPEN, 11]
    assert store.prefix(model, again, turn_ends(tokenizer, again))[1] == len(first) - 2
    edited = [*conversation(4)[:-5], 497, CLOSE, OPEN, 11]
    assert store.prefix(model, edited, turn_ends(tokenizer, edited))[1] == len(first) - 2


def test_a_turns_end_counts_only_if_all_before_it_is_shared(model):
    store = PrefixStore()
    store.prefix(model, list(range(1, 21)), {5, 15})
    for shared, cached in ((4, 0), (5, 5), (14, 5), (15, 15)):
        other = PrefixStore()
        other.entries, other._model = list(store.entries), model
        assert other.prefix(model, [*range(1, shared + 1), 400, 401], ())[1] == cached


def test_windows_of_what_was_left_behind_are_not_taken_over(model, watched):
    """Another end at the same length is another conversation's."""
    store = PrefixStore()
    store.prefix(model, list(range(1, 21)), {5, 15})
    branch = [*range(1, 9), *range(300, 312)]
    store.prefix(model, branch, {18})
    watched.parts.clear()
    last = [*branch[:16], 450, 451]
    cache, cached = store.prefix(model, last, ())
    assert cached == 5 and mx.array_equal(logits(model, cache), cold(model, [last[:5], last[5:]]))


def test_results_of_calls_are_gone_on_behind():
    ids = [2, OPEN, 10, 7, CLOSE, OPEN, 11, 48, 9, 49, 50, 8, RESULT]
    assert turn_ends(gemma_tokenizer(), ids) == {5, len(ids)}
    assert turn_ends(gemma_tokenizer(), ids[:7]) == {5}
    assert turn_ends(gemma_tokenizer(), [7, 8, 9]) == turn_ends(None, [1, 2, 3]) == {3}
    assert turn_ends(gemma_tokenizer(), [OPEN, 7]) == set()


def test_a_prompt_that_is_remembered_whole_encodes_nothing(model, watched):
    store = PrefixStore()
    first, _ = store.prefix(model, [1, 2, 3], {3})
    watched.parts.clear()
    cache, cached = store.prefix(model, [1, 2, 3], {3})
    assert cached == 3 and watched.parts == [] and mx.array_equal(logits(model, cache), logits(model, first))


def test_the_least_recently_used_goes_first_and_short_ones_before_it(model, monkeypatch):
    monkeypatch.setattr(prefixes, "SHORT", 50)
    prompts = [[n, *range(100, 160)] for n in range(4)]
    size = PrefixStore()
    size.prefix(model, prompts[0], {len(prompts[0])})
    store = PrefixStore(3 * size.nbytes + size.nbytes // 2)
    for prompt in prompts[:3]:
        store.prefix(model, prompt, {len(prompt)})
    store.prefix(model, prompts[0], {len(prompts[0])})  # used again
    store.prefix(model, prompts[3], {len(prompts[3])})
    assert [store.prefix(model, prompt, ())[1] for prompt in (prompts[0], prompts[1])] == [61, 0]
    store.prefix(model, [9, 9, 9], {3})
    kept = [entry.ids for entry in store.entries]
    assert (9, 9, 9) not in kept or kept[0] == (9, 9, 9)  # a short one that was never used again is next


def test_what_was_used_later_stays_longer(model, monkeypatch):
    monkeypatch.setattr(prefixes, "SHORT", 10)
    prompts = [[n, *range(100, 160)] for n in range(3)]
    size = PrefixStore()
    size.prefix(model, prompts[0], {61})
    store = PrefixStore(2 * size.nbytes + size.nbytes // 2)
    for n in (0, 1, 1, 0):  # both were used again, the first one last
        store.prefix(model, prompts[n], {61})
    store.prefix(model, prompts[2], {61})
    assert [entry.ids[0] for entry in store.entries] == [0, 2]


def test_nothing_is_kept_beyond_the_budget(model):
    store = PrefixStore(0)
    assert store.prefix(model, [1, 2, 3], {3})[1] == 0 == store.nbytes and store.entries == []


def test_what_is_kept_does_not_change_with_what_goes_on(model):
    """Canvases, abandoned streams and drafts write into the slack of a prefix that is remembered."""
    store = PrefixStore()
    engine = Engine(model, gemma_tokenizer(), prefixes=store)
    prompt = conversation(2)
    fresh = Engine(model, gemma_tokenizer())

    def ask(engine, seed, **fields):
        return engine.generate(Request(prompt, settings=SETTINGS, seed=seed, **fields))

    first = ask(engine, 1)
    abandoned = engine.stream(Request(prompt, settings=GenerationConfig(max_new_tokens=48, eos_token_id=[]), seed=2))
    next(abandoned)
    other = engine.stream(Request(prompt, settings=SETTINGS, seed=3))
    next(other)
    abandoned.close()
    next(abandoned, None)
    steered = ask(
        engine,
        4,
        canvas=[None, 5, 6],
    )
    drafted = ask(engine, 5, canvas=CanvasPlan(draft=[7, 8, 9]))
    list(other)
    again = ask(engine, 1)
    assert again.tokens == first.tokens == ask(fresh, 1).tokens
    assert again.stats.cached_tokens > 0 and first.stats.cached_tokens == 0
    assert steered.tokens == ask(fresh, 4, canvas=[None, 5, 6]).tokens
    assert drafted.tokens == ask(fresh, 5, canvas=CanvasPlan(draft=[7, 8, 9])).tokens


def test_samples_choices_and_scores_use_it_too(model):
    store = PrefixStore()
    engine = Engine(model, gemma_tokenizer(), prefixes=store)
    settings = GenerationConfig(max_new_tokens=CANVAS, max_denoising_steps=2, eos_token_id=[1])
    request = Request(conversation(2), settings=settings)
    score, choice = engine.score(request, "a"), engine.choose(request, "{?}", ["a", "b"])
    assert engine.score(request, "a") == score and engine.choose(request, "{?}", ["a", "b"]) == choice
    samples = engine.samples(Request(conversation(2), settings=settings, samples=2))
    assert all(sample.result.stats.cached_tokens > 0 for sample in samples)


def test_threads_share_a_store(model):
    store, results = PrefixStore(), {}
    prompts = [[n, *range(100, 140)] for n in range(3)]
    alone = {
        n: logits(model, PrefixStore().prefix(model, prompt, {40})[0]).tolist() for n, prompt in enumerate(prompts)
    }

    def ask(n, times=4):
        for _ in range(times):
            results.setdefault(n, []).append(logits(model, store.prefix(model, prompts[n], {40})[0]).tolist())

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(own == alone[n] for n in range(3) for own in results[n]) and len(store.entries) == 3


def test_a_store_is_one_models(model, tmp_path):
    store = PrefixStore()
    store.prefix(model, [1, 2], {2})
    other = load(write_random(tmp_path, config_dict(CANVAS, vocab_size=64, hidden_size=64, num_hidden_layers=6)))[0]
    with pytest.raises(DGemmaError, match="belongs to the model that it was first used with"):
        store.prefix(other, [1, 2], {2})


@pytest.mark.parametrize("budget", [-1, 1.5, "2 GB", True])
def test_a_budget_is_in_bytes(budget):
    with pytest.raises(DGemmaError, match="is in bytes"):
        PrefixStore(budget)


def test_common():
    assert [common([1, 2, 3], ids) for ids in ([], [2], [1, 2], [1, 2, 3, 4], [1, 9, 3])] == [0, 0, 2, 3, 1]
