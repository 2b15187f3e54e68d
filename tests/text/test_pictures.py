"""Images in messages: what stands for them in a prompt, what is remembered of them, what is refused."""

import base64
import json
from dataclasses import replace

import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.text.events import TextCanvas, collect
from mlx_dgemma.text.pictures import MOST, described, for_template, pictures_of, read_pictures, see, with_pictures
from mlx_dgemma.text.prefixes import PrefixStore
from tests.seeing import BUDGET, picture, png, seeing_engine, write_pictures  # noqa: F401

CONFIG = GenerationConfig(max_new_tokens=16, max_denoising_steps=2)


def user(*parts):
    made = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": made}


def image(number):
    return {"type": "image", "image": png(number)}


@pytest.fixture(scope="module")
def vision(seeing_engine):  # noqa: F811
    return seeing_engine.model.require_eyes().config


def test_a_name_stands_at_each_position_of_an_image(seeing_engine, vision):  # noqa: F811
    messages = [user("before", image(0), "between", image(1), "behind")]
    run = seeing_engine.prepare(Request(messages))
    one, two = run.pictures
    assert [n for n in run.names if n < 0] == [one.key] * one.tokens + [two.key] * two.tokens
    assert run.ids == [vision.image_token_id if n < 0 else n for n in run.names]
    text = seeing_engine.tokenizer.decode(run.ids)
    first, second, third = text.split("<|image|>" * one.tokens)[0], *text.split("<|image|>")[one.tokens :: two.tokens]
    assert "before" in first and "between" in second and "behind" in third
    for name in (one.key, two.key):
        begin = run.names.index(name)
        end = begin + run.names.count(name)
        assert run.names[begin - 1] == vision.boi_token_id and run.names[end] == vision.eoi_token_id


def test_the_same_pixels_have_the_same_name_and_others_another(seeing_engine):  # noqa: F811
    def names(request):
        return {own.key for own in seeing_engine.prepare(request).pictures}

    assert len(names(Request([user(image(0), image(0), image(3))]))) == 2
    assert names(Request([user(image(1))])) == names(Request([user({"type": "image", "image": picture(1)})]))
    assert names(Request([user(image(1))], image_tokens=140)).isdisjoint(names(Request([user(image(1))])))


def test_text_before_images_is_where_a_text_prompt_has_it(seeing_engine):  # noqa: F811
    with_images = seeing_engine.prepare(Request("what is this?", images=[png(0), png(1)]))
    as_messages = seeing_engine.prepare(Request([user(image(0), image(1), "what is this?")]))
    assert with_images.names == as_messages.names


def test_what_spells_an_image_token_is_text(seeing_engine, vision):  # noqa: F811
    run = seeing_engine.prepare(Request([user("look: <|image|>", image(0))]))
    assert run.ids.count(vision.image_token_id) == run.pictures[0].tokens
    assert "<|image|>" in seeing_engine.tokenizer.decode(run.ids[: run.ids.index(vision.boi_token_id)])


def test_counts_must_match(vision, seeing_engine):  # noqa: F811
    own = pictures_of(read_pictures([user(image(0))], vision, None))
    with pytest.raises(DGemmaError, match=r"has 2 image tokens \(id 107\) for 1 image;"):
        with_pictures([5, vision.image_token_id, 6, vision.image_token_id], own, vision)
    with pytest.raises(DGemmaError, match=r"has 0 image tokens \(id 107\) for 1 image;"):
        seeing_engine.prepare(Request([5, 6], images=[png(0)]))


def test_what_cannot_be_is_refused_in_one_line(seeing_engine, vision):  # noqa: F811
    for request, told in (
        (Request([user(image(0))], images=[png(1)]), "put all into the messages"),
        (Request([{"role": "user", "content": "a"}], images=[png(1)]), "give images as parts of the messages"),
        (Request([user(*[image(0)] * (MOST + 1))]), f"{MOST + 1} images; give at most {MOST}"),
        (Request([user({"type": "image", "image": b"no image"})]), "image 1"),
        (Request("a", images=[png(1)], image_tokens=100), "70, 140, 280, 560, 1120"),
        (Request([5, 107]), "the prompt has 1 image token (id 107) for 0 images"),
        (Request("a<|image|>", chat_template=False), "the prompt has 1 image token (id 107) for 0 images"),
        (Request([5, 107, -3], images=[png(1)]), "token id -3 is outside the vocabulary"),
        (Request([5, -3]), "token id -3 is outside the vocabulary"),
        (Request("a", images=[png(0)] * 30, image_tokens=140), "max_position_embeddings (2048)"),
    ):
        with pytest.raises(DGemmaError) as caught:
            seeing_engine.prepare(request)
        assert told in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DGemmaError, match="images are a str"):
        Request("a", images="a.png")
    with pytest.raises(DGemmaError, match="image"):  # the embedded checkpoint has no image token
        Engine.load().prepare(Request("a", images=[png(0)]))


def test_what_is_told_of_an_image_is_no_pixel(seeing_engine):  # noqa: F811
    request = Request([user(image(1), "hm")])
    run = seeing_engine.prepare(request)
    told = described(request, run.pictures)
    size = {"width": 60, "height": 60, "tokens": run.pictures[0].tokens}
    assert told == [user({"type": "image", **size}, "hm")]
    beside = Request("hm", images=[png(1)])
    assert described(beside, run.pictures) == told and request.prompt == [user(image(1), "hm")]
    for plain in (Request("hm"), Request([user("hm")]), Request([5, 6])):
        assert described(plain, ()) == plain.prompt
    raw = Request([5, 107], images=[png(1)])
    assert described(raw, seeing_engine.prepare(raw).pictures) == [5, 107]
    assert for_template(see(seeing_engine.model, request).prompt)[0]["content"][0] == {"type": "image"}


def test_an_image_is_remembered_whole_and_by_its_pixels(seeing_engine, monkeypatch):  # noqa: F811
    engine = replace(seeing_engine, prefixes=PrefixStore())
    eyes, seen = engine.model.require_eyes(), []
    real = eyes.see
    monkeypatch.setattr(eyes, "see", lambda patches, grid: seen.append(grid) or real(patches, grid))

    def ask(*messages):
        seen.clear()
        result = engine.generate(Request(list(messages), settings=CONFIG))
        return result, len(seen)

    first, looked = ask(user(image(0), "one"))
    assert looked == 1 and first.stats.cached_tokens == 0 and first.stats.image_seconds > 0
    turn = {"role": "assistant", "content": "so"}
    second, looked = ask(user(image(0), "one"), turn, user("two"))
    assert looked == 0 and second.stats.cached_tokens > BUDGET // 2 and second.stats.image_seconds == 0
    third, looked = ask(user(image(3), "one"), turn, user("two"))  # as large, with other pixels
    assert looked == 1 and third.stats.cached_tokens < 10
    cold = seeing_engine.generate(Request([user(image(0), "one"), turn, user("two")], settings=CONFIG))
    assert cold.tokens == second.tokens


def test_a_result_may_hold_an_image(seeing_engine, vision):  # noqa: F811
    call = {"id": "1", "type": "function", "function": {"name": "shoot", "arguments": {}}}
    tool = {"type": "function", "function": {"name": "shoot", "parameters": {"type": "object", "properties": {}}}}
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "here"}, image(2)]}
    messages = [user("shoot"), {"role": "assistant", "tool_calls": [call]}, result]
    run = seeing_engine.prepare(Request(messages, tools=[tool]))
    assert run.ids.count(vision.image_token_id) == run.pictures[0].tokens


def test_a_name_is_told_from_other_ids_wherever_it_stands(seeing_engine):  # noqa: F811
    run = seeing_engine.prepare(Request([5, 107, 6, 107, 107], images=[png(1), picture(0), png(1)]))
    first, second = (own.key for own in run.pictures[:2])
    marked = [[108, *[key] * count, 109] for key, count in ((first, 64), (second, 45), (first, 64))]
    assert run.names == [5, *marked[0], 6, *marked[1], *marked[2]]


def test_the_forms_of_an_image_are_one(seeing_engine, tmp_path):  # noqa: F811
    (path,) = write_pictures(tmp_path, (1,))
    url = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"
    requests = [Request("what", images=[own]) for own in (path, tmp_path / "1.png", png(1), picture(1), url)]
    parts = [{"type": "image", "image": picture(1)}, {"type": "image_url", "image_url": {"url": url}}]
    parts += [{"type": "image_url", "image_url": url}, {"type": "input_image", "image_url": url}]
    requests += [Request([user(part, "what")]) for part in parts]
    names = [seeing_engine.prepare(request).names for request in requests]
    assert names.count(names[0]) == len(names) and sum(name < 0 for name in names[0]) == 64


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_spelled_image_token_takes_no_images_place(seeing_engine, role):  # noqa: F811
    def prompt(word, role):
        said = {own: word if own == role else "w" for own in ("system", "user", "assistant", "tool")}
        call = {"id": "c", "function": {"name": "f", "arguments": {"x": word}}}
        talk = [{"role": "system", "content": said["system"]}, user(said["user"], image(1))]
        talk += [{"role": "assistant", "content": said["assistant"]}, user("x")]
        talk += [{"role": "assistant", "tool_calls": [call]}]
        talk += [{"role": "tool", "content": [{"type": "text", "text": said["tool"]}, image(0)]}]
        return Request(talk, tools=[{"name": "f", "description": word}])

    plain, spelled = (seeing_engine.prepare(prompt(word, role)) for word in ("w", "<|image|>"))
    seen = [[own for own in run.names if own in (108, 109) or own < 0] for run in (plain, spelled)]
    assert seen[0] == seen[1] and len(seen[0]) == 64 + 45 + 4
    assert len(spelled.names) == len(plain.names) + 3 * len("<|image|>") - 3


@pytest.mark.parametrize("store", [False, True])
def test_samples_and_texts_of_a_batch_are_single_runs(seeing_engine, store):  # noqa: F811
    engine = replace(seeing_engine, prefixes=PrefixStore() if store else None)
    settings = GenerationConfig(max_new_tokens=24, max_denoising_steps=4)
    request = Request("what", images=[png(1), png(0)], settings=settings, seed=3)
    single = {seed: seeing_engine.generate(replace(request, seed=seed)) for seed in (3, 4, 5)}
    samples = engine.samples(replace(request, samples=3))
    assert {own.seed: own.result.canvases for own in samples} == {s: own.canvases for s, own in single.items()}
    assert all(own.result.stats.image_tokens == (64, 45) for own in samples)
    requests = [request, Request("what", settings=settings), replace(request, images=[png(2)]), Request([5, 107])]
    done: dict[int, list[TextCanvas]] = {}
    for number, event in engine.stream_many(requests, max_rows=3):
        if isinstance(event, TextCanvas):
            done.setdefault(number, []).append(event)
        elif isinstance(event, DGemmaError):
            assert number == 3 and "1 image token" in str(event)
    for number in range(3):
        assert collect(done[number]).canvases == seeing_engine.generate(requests[number]).canvases


def test_choices_and_scores_see_the_image(seeing_engine):  # noqa: F811
    kept = replace(seeing_engine, prefixes=PrefixStore())
    request, same = Request("what", images=[png(1)]), Request([user(image(1), "what")])
    others = Request("what", images=[png(4)]), Request("what")
    for causal in (False, True):
        mine = seeing_engine.score(request, "ab", causal=causal).log_p
        assert mine == seeing_engine.score(same, "ab", causal=causal).log_p
        for _ in range(2):  # the second time behind a prefix that is remembered
            assert kept.score(request, "ab", causal=causal).log_p == pytest.approx(mine, abs=1e-5)
        for other in others:
            assert seeing_engine.score(other, "ab", causal=causal).log_p != pytest.approx(mine, abs=1e-3)
    first, *again = (own.choose(request, "{?}", ["ab", "cd"])["ab"] for own in (seeing_engine, kept, kept))
    assert again == pytest.approx([first, first], rel=1e-3)
    for other in others:
        assert seeing_engine.choose(other, "{?}", ["ab", "cd"])["ab"] != pytest.approx(first, rel=0.1)


def test_a_description_counts_no_json_as_an_image(seeing_engine):  # noqa: F811
    call = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    odd = {"role": "tool", "tool_call_id": "c", "content": [{"type": "image"}, {"n": 1}]}  # no parts, but JSON
    request = Request([user(image(0), "a"), call, odd, user(image(1))])
    told = described(request, seeing_engine.prepare(request).pictures)
    assert [told[i]["content"][0]["width"] for i in (0, 3)] == [300, 60] and json.dumps(told)
    assert told[2]["content"] == '[{"type": "image"}, {"n": 1}]'
