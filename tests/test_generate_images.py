"""The command line with images, on a small random checkpoint that sees: what goes in, what is told, what is refused."""

import base64
import json
from pathlib import Path

import pytest

from mlx_dgemma.report.__main__ import main as report
from mlx_dgemma.terminal.arguments import build_parser
from mlx_dgemma.text.images import BUDGETS
from mlx_dgemma.trace import load_trace
from tests.command import in_process
from tests.screen import Terminal
from tests.seeing import png, write_pictures, write_seeing, write_tokenizer

SHORT = ("--max-tokens", "8", "--max-denoising-steps", "2")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
PLAIN = 19  # tokens of a prompt of four letters, in the template
URL = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_tokenizer(write_seeing(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def command(folder, tmp_path, monkeypatch, capsys):
    """The command where there are 0.png, 1.png, 2.png and 4.png; 1 and 4 are of one size."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path, (0, 1, 2, 4))
    return lambda *arguments: in_process(capsys, "--model", folder, *SHORT, *arguments)


@pytest.fixture
def answer(command):
    """What --json prints."""

    def run(*arguments: str) -> dict:
        code, out, err = command("--json", "--quiet", *arguments)
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def complaint(command):
    """The line that is all that comes out of a command which fails."""

    def run(*arguments: str, code: int = 1) -> str:
        got, out, err = command(*arguments)
        assert (got, out, err.count("\n")) == (code, "", 1) and err.startswith("error: ")
        return err.removeprefix("error: ").removesuffix("\n")

    return run


def test_images_stand_before_the_text_in_their_order(answer):
    known = {
        (): answer("what"),
        (64,): answer("--image", "1.png", "what"),
        (45, 64): answer("--image", "0.png", "--image", "1.png", "what"),
        (64, 45): answer("--image", "1.png", "--image", "0.png", "what"),
    }
    for counts, own in known.items():
        stats = own["stats"]
        assert own["prompt"] == "what" and tuple(stats["image_tokens"]) == counts
        assert stats["prompt_tokens"] == PLAIN + sum(counts) + 2 * len(counts)
        assert (0 < stats["image_seconds"] < stats["prompt_seconds"]) if counts else stats["image_seconds"] == 0
    assert len({tuple(own["tokens"]) for own in known.values()}) == 4  # each says something else to the model


def test_behind_a_system_turn(answer):
    got = answer("--image", "1.png", "--system", "s", "what")
    assert got["stats"]["image_tokens"] == [64] and got["prompt"] == "what"
    assert got["stats"]["prompt_tokens"] == PLAIN + 66 + len("<sys-tem\ns>\n") - 1


def test_the_summary_says_what_was_seen(command):
    err = command("--image", "0.png", "--image", "1.png", "what")[2]
    assert f"prompt:  {PLAIN + 113} tokens, " in err and ", 2 images of 45 + 64 tokens seen in " in err
    assert ", 1 image of 64 tokens seen in " in command("--image", "1.png", "what")[2]
    assert "image" not in command("what")[2]


def test_how_many_tokens_an_image_may_have(answer, complaint):
    assert answer("--image", "1.png", "--image-tokens", "140", "what")["stats"]["image_tokens"] == [121]
    assert answer("--image-tokens", "1120", "what")["stats"]["image_tokens"] == []
    told = complaint("--image", "1.png", "--image-tokens", "141", "what", code=2)
    assert told == "argument --image-tokens: '141' is none of 70, 140, 280, 560, 1120 (see --help)"
    shown = " ".join(build_parser().format_help().split())
    assert f"at most: {', '.join(map(str, BUDGETS[:-1]))} or {BUDGETS[-1]} (default" in shown


def test_a_trace_knows_sizes_and_no_pixels(command):
    assert command("--image", "1.png", "--image", "0.png", "what", "--trace", "r.npz")[0] == 0
    trace = load_trace("r.npz")
    big, wide = ({"type": "image", "width": w, "height": h, "tokens": n} for w, h, n in ((60, 60, 64), (300, 10, 45)))
    assert trace.prompt == [{"role": "user", "content": [big, wide, {"type": "text", "text": "what"}]}]
    assert trace.committed[-1].stats.image_tokens == (64, 45) and len(trace.prompt_ids) == PLAIN + 66 + 47
    assert report(["r.npz", "--svg"]) == 0
    page, drawn = (Path(f"r.{kind}").read_text("utf-8") for kind in ("html", "svg"))
    assert "user: [image 60×60]\n[image 300×10]\nwhat" in page and "[image 60×60] [image 300×10] what" in drawn


def test_a_trace_of_images_behind_a_system_turn_or_in_a_raw_prompt(command):
    command("--image", "1.png", "--system", "s", "what", "--trace", "r.npz")
    seen = {"type": "image", "width": 60, "height": 60, "tokens": 64}
    user = {"role": "user", "content": [seen, {"type": "text", "text": "what"}]}
    assert load_trace("r.npz").prompt == [{"role": "system", "content": "s"}, user]
    command("--image", "1.png", "--no-chat-template", "a<|image|>b", "--trace", "r.npz")
    assert load_trace("r.npz").prompt == "a<|image|>b" and len(load_trace("r.npz").prompt_ids) == 68


def test_samples_choices_templates_and_forms(answer, command, tmp_path):
    image, single = ("--image", "1.png", "what"), {}
    for seed in "567":
        single[int(seed)] = answer(*image, "--seed", seed)["tokens"]
    samples = answer(*image, "--num-samples", "3", "--seed", "5")
    assert {own["seed"]: own["tokens"] for own in samples} == single
    assert all(own["stats"]["image_tokens"] == [64] for own in samples)
    chosen, other, blind = (
        answer(*images, "what", "--choose", "ab,cd")["choices"][0]["ab"]
        for images in (["--image", "1.png"], ["--image", "4.png"], [])
    )
    assert len({chosen, other, blind}) == 3
    assert answer(*image, "--template", "x {4} y")["text"].startswith("x ")
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    form = answer(*image, "--json-schema", "s.json", "--max-tokens", "64")
    assert type(json.loads(form["text"])["a"]) is int and form["stats"]["image_tokens"] == [64]
    assert form["stats"]["image_seconds"] > 0


def test_prompts_from_a_file_hold_images_as_parts(answer, command, tmp_path):
    def line(name: str, *parts: object) -> str:
        return json.dumps(
            {"id": name, "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "what"}]}]}
        )

    lines = [
        line("path", {"type": "image", "image": "1.png"}),
        json.dumps("what"),
        line("none", {"type": "image", "image": "none.png"}),
        line("url", {"type": "image_url", "image_url": {"url": URL}}),
        line("fetch", {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}),
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    code, out, err = command("--prompts", "p.jsonl", "--quiet", "--max-batch", "2")
    got = {own["line"]: own for own in map(json.loads, out.splitlines())}
    alone = answer("--image", "1.png", "what")
    assert code == 1 and sorted(got) == [1, 2, 4] and {own["prompt"] for own in got.values()} == {"what"}
    assert got[1]["tokens"] == got[4]["tokens"] == alone["tokens"] and "base64" not in out
    assert got[2]["tokens"] == answer("what")["tokens"] and got[2]["stats"]["image_tokens"] == []
    assert "error: line 3: image 1: none.png cannot be read" in err
    assert "error: line 5: message 1 (user): https: URLs are not fetched" in err and err.count("\n") == 2


def test_what_is_remembered_is_that_image_and_no_other(answer):
    cache = ("--prefix-cache", "cache", "what")
    first, again, other = (answer("--image", f"{name}.png", *cache) for name in "114")
    assert [own["stats"]["cached_tokens"] > 66 for own in (first, again, other)] == [False, True, False]
    assert again["tokens"] == first["tokens"] == answer("--image", "1.png", "what")["tokens"]
    assert again["stats"]["image_seconds"] == 0 < other["stats"]["image_seconds"]
    assert other["tokens"] == answer("--image", "4.png", "what")["tokens"] != first["tokens"]
    larger = answer("--image", "1.png", "--image-tokens", "140", *cache)
    assert larger["stats"]["cached_tokens"] < 66 and larger["stats"]["image_seconds"] > 0


def test_a_raw_prompt_says_where_its_images_stand(answer, complaint):
    got = answer("--image", "1.png", "--no-chat-template", "a<|image|>b")
    assert got["stats"]["prompt_tokens"] == 68 and got["stats"]["image_tokens"] == [64]
    for prompt, images, told in (
        ("ab", 1, "the prompt has 0 image tokens (id 107) for 1 image; a raw prompt needs one for each"),
        ("a<|image|>b<|image|>", 1, "the prompt has 2 image tokens (id 107) for 1 image"),
        ("a<|image|>b", 2, "the prompt has 1 image token (id 107) for 2 images"),
        ("a<|image|>b", 0, "the prompt has 1 image token (id 107) for 0 images"),
    ):
        assert complaint(*["--image", "1.png"] * images, "--no-chat-template", prompt).startswith(told)


def test_an_image_token_that_is_spelled_in_a_text_stays_text(answer):
    plain, spelled = (answer("--image", "1.png", f"{word}what")["stats"] for word in ("", "<|image|>"))
    assert spelled["image_tokens"] == [64] and spelled["prompt_tokens"] == plain["prompt_tokens"] + len("<|image|>")
    assert answer("<|image|>what")["stats"]["image_tokens"] == []


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("none.png", "image 2: none.png cannot be read (No such file or directory); give PNG, JPEG, WebP or GIF"),
        (".", "image 2: . cannot be read (Is a directory)"),
        ("text.png", "image 2: it is no image; give PNG"),
        ("empty.png", "image 2 is empty"),
        ("cut.png", "image 2 cannot be decoded"),
        ("https://a.b/c.png", "image 2: https: URLs are not fetched"),
    ],
)
def test_what_is_no_image_is_one_line(complaint, tmp_path, image, told):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(png(1)[:3000])
    assert complaint("--image", "1.png", "--image", image, "what").startswith(told)


def test_too_many_images_are_one_line(complaint):
    assert complaint(*["--image", "1.png"] * 65, "what") == "the prompt has 65 images; give at most 64"


def test_other_ways_of_writing_see_the_image_too(command):
    for options in (
        ["--mode", "causal"],
        ["--mode", "auto"],
        ["--repair"],
        ["--fast"],
        ["--init", "ab", "--noise", "0.5"],
    ):
        code, _, err = command("--image", "1.png", "what", *options)
        assert code == 0 and ", 1 image of 64 tokens seen in " in err, options


def test_a_canvas_behind_an_image_can_be_watched(folder, command, tmp_path):
    terminal = Terminal(80, 24, "--model", folder, *SHORT, "--image", str(tmp_path / "1.png"), "what")
    assert "canvas 1 · step 1/2" in terminal.text()
    terminal.finish()
    assert terminal.process.returncode == 0 and "1 image of 64 tokens seen in" in terminal.text()


def test_the_embedded_checkpoint_cannot_see(capsys, tmp_path):
    (name,) = write_pictures(tmp_path, (1,))
    code, out, err = in_process(capsys, "--image", name, "roman 3")
    assert (code, out, err.count("\n")) == (1, "", 1) and "images need a checkpoint that has" in err
