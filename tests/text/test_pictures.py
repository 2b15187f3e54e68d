"""Images in messages: what stands for them in a prompt, what is remembered of them, what is refused."""

from dataclasses import replace

import pytest

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.text.pictures import MOST, described, for_template, pictures_of, read_pictures, see, with_pictures
from mlx_dgemma.text.prefixes import PrefixStore
from tests.seeing import BUDGET, picture, png, seeing_engine  # noqa: F401

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
    with pytest.raises(DGemmaError, match="wrote 2 image tokens for 1 image;"):
        with_pictures([5, vision.image_token_id, 6, vision.image_token_id], own, vision)
    with pytest.raises(DGemmaError, match="wrote 0 image tokens for 1 image;"):
        seeing_engine.prepare(Request([5, 6], images=[png(0)]))


def test_what_cannot_be_is_refused_in_one_line(seeing_engine, vision):  # noqa: F811
    for request, told in (
        (Request([user(image(0))], images=[png(1)]), "put all into the messages"),
        (Request([{"role": "user", "content": "a"}], images=[png(1)]), "give images as parts of the messages"),
        (Request([user(*[image(0)] * (MOST + 1))]), f"{MOST + 1} images; give at most {MOST}"),
        (Request([user({"type": "image", "image": b"no image"})]), "image 1"),
        (Request("a", images=[png(1)], image_tokens=100), "70, 140, 280, 560, 1120"),
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
    told = described(request.prompt, run.pictures)
    size = {"width": 60, "height": 60, "tokens": run.pictures[0].tokens}
    assert told == [user({"type": "image", **size}, "hm")] and described("hm", ()) == "hm"
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
