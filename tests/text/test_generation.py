"""Prompts, streaming, cutting, decoding."""

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from mlx_dgemma import DGemmaError, GenerationConfig, generate_text, load, stream_generate
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.text.decoding import GrowingText
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.prompts import prompt_ids
from mlx_dgemma.text.reply import ReplyParser
from mlx_dgemma.text.transcript import cut
from tests.conftest import CANVAS, ReplayedNoise


@pytest.fixture(scope="module")
def embedded():
    return load()


def test_three_forms_of_a_prompt_are_the_same(embedded):
    _, tokenizer = embedded
    ids = prompt_ids(tokenizer, "upper abc")
    assert ids == prompt_ids(tokenizer, [{"role": "user", "content": "upper abc"}])
    assert ids == prompt_ids(tokenizer, ids)
    assert tokenizer.decode(ids) == "<bos><|turn>user\nupper abc<turn|>\n<|turn>model\n"
    assert tokenizer.decode(prompt_ids(tokenizer, "upper abc", chat_template=False)) == "upper abc"


def test_a_system_turn(embedded):
    ids = prompt_ids(embedded[1], [{"role": "system", "content": "be"}, {"role": "user", "content": "it"}])
    assert embedded[1].decode(ids).startswith("<bos><|turn>system\nbe<turn|>\n<|turn>user\nit")


@pytest.mark.parametrize(
    "prompt", ["", "  \n", [], None, [{"text": "no role"}], [1, "two"], 7, (1, 2), b"x", [True, 2]]
)
def test_unusable_prompts_are_one_line(embedded, prompt):
    with pytest.raises(DGemmaError) as error:
        stream_generate(*embedded, prompt)  # raised at the call, not at the first event
    assert "prompt" in str(error.value) and "\n" not in str(error.value)


def test_a_token_id_outside_the_vocabulary_is_named(model):
    for bad in (-1, 120):
        with pytest.raises(DGemmaError, match=rf"token id {bad} is outside the vocabulary \(0 … 119\)"):
            stream_generate(model, None, [1, bad])


def test_a_too_long_prompt_says_how_long(model):
    with pytest.raises(DGemmaError, match=r"the prompt has 500 tokens.*max_position_embeddings \(512\)"):
        stream_generate(model, None, [1] * 500)
    with pytest.raises(DGemmaError, match="600 prefix tokens exceed max_position_embeddings"):
        model.encode(mx.array([[1] * 600]), model.make_cache())


def test_text_without_a_tokenizer_is_an_error_and_ids_are_fine(model):
    with pytest.raises(DGemmaError, match="no tokenizer files; give the prompt as token ids"):
        stream_generate(model, None, "hello")
    result = generate_text(model, None, [1, 2, 3], GenerationConfig(max_denoising_steps=1))
    assert result.text == "" and result.tokens


def test_the_first_canvas_arrives_before_the_second_is_begun(model, monkeypatch):
    calls = []
    denoise = model.denoise_hidden
    monkeypatch.setattr(type(model), "denoise_hidden", lambda self, *a: (calls.append(1), denoise(*a))[1])
    config = GenerationConfig(max_new_tokens=2 * CANVAS, max_denoising_steps=3, eos_token_id=[])
    seen = [(type(e), len(calls)) for e in stream_generate(model, None, [1, 2], config)]
    # a step's event comes when the next one is under way, and nothing of the next canvas is
    steps = [(DenoisingStep, 2), (DenoisingStep, 3), (DenoisingStep, 3), (TextCanvas, 3)]
    assert seen == steps + [(kind, n + 3) for kind, n in steps]


def test_one_seed_one_output(model):
    config = GenerationConfig(max_new_tokens=20, max_denoising_steps=4)
    runs = [generate_text(model, None, [1, 2], config, seed=seed).canvases for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_whole_canvases_are_denoised_and_the_text_is_cut(model):
    config = GenerationConfig(max_new_tokens=CANVAS + 3, max_denoising_steps=2, eos_token_id=[])
    result = generate_text(model, None, [1, 2], config)
    assert len(result.tokens) == CANVAS + 3 and len(result.canvases) == 2
    assert all(len(canvas) == CANVAS for canvas in result.canvases)
    assert result.finish_reason == "length"
    assert result.stats.steps == sum(result.steps_per_canvas) == 4
    assert result.stats.tokens_per_forward == (CANVAS + 3) / 4
    assert result.stats.prompt_tokens == 2 and result.stats.peak_memory > 0


def test_generation_stops_where_the_positions_end(model):
    config = GenerationConfig(max_new_tokens=400, max_denoising_steps=1, eos_token_id=[])
    result = generate_text(model, None, [1] * (512 - 2 * CANVAS - 1), config)
    assert len(result.canvases) == 2 and result.finish_reason == "length"


def test_given_settings_win_over_the_checkpoints(model):
    noise = ReplayedNoise(0)
    result = generate_text(model, None, [1], GenerationConfig(max_denoising_steps=2, max_new_tokens=4), noise=noise)
    assert result.steps_per_canvas == [2]
    assert noise.draws == ["tokens", *["uniform", "tokens"] * 2]


@pytest.mark.parametrize(
    ("canvas", "limit", "already", "expected"),
    [
        ([5, 6, 9, 7, 9], 100, 0, ([5, 6], True)),  # at the first stop token
        ([9, 5, 6, 7, 8], 100, 0, ([], True)),
        ([5, 6, 7, 8, 4], 100, 0, ([5, 6, 7, 8, 4], False)),
        ([5, 6, 7, 9, 4], 12, 10, ([5, 6], False)),  # the limit comes first
        ([5, 6, 9, 7, 4], 12, 10, ([5, 6], True)),
    ],
)
def test_cut(canvas, limit, already, expected):
    assert cut(canvas, GenerationConfig(max_new_tokens=limit, eos_token_id=[9, 3]), already) == expected


class ByteTokenizer:
    """Every id is a byte of UTF-8; ids from 256 on are special."""

    def __init__(self):
        self.special = {"<|channel>": 256, "<channel|>": 257}
        self._decoder = Tokenizer(models.BPE(vocab={f"<0x{i:02X}>": i for i in range(256)}, merges=[]))
        self._decoder.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])

    def get_vocab(self):
        return self.special

    def convert_ids_to_tokens(self, ids):
        names = {token: name for name, token in self.special.items()}
        return [names.get(token, f"<0x{token:02X}>") for token in ids]

    def decode(self, ids, skip_special_tokens):
        return self._decoder.decode(ids, skip_special_tokens=skip_special_tokens)


def test_a_character_split_between_canvases_arrives_whole():
    data, decoder = list("né€😀!".encode()), GrowingText(ByteTokenizer())
    parts = [decoder.add([byte], final=i + 1 == len(data)) for i, byte in enumerate(data)]
    assert "".join(parts) == "né€😀!"
    assert not any("\ufffd" in part for part in parts)


def test_an_unfinished_character_at_the_end_is_shown_as_such():
    assert "\ufffd" in GrowingText(ByteTokenizer()).add(list("€".encode())[:2], final=True)


def test_an_unfinished_character_where_the_text_was_cut_is_left_out():
    for text in ("né€", "né😀", "日本"):
        data = list(text.encode())
        for length in range(len(data) + 1):
            got = GrowingText(ByteTokenizer()).add(data[:length], final=True, is_cut=True)
            assert got == bytes(data[:length]).decode("utf-8", "ignore")


@given(st.lists(st.lists(st.integers(0, 257), max_size=6), max_size=5), st.booleans())
@settings(max_examples=200, deadline=None)
def test_pieces_joined_are_the_whole_text(canvases, is_cut):
    decoder, whole = GrowingText(ByteTokenizer()), GrowingText(ByteTokenizer())
    parts = [decoder.add(canvas, final=False) for canvas in canvases]
    parts.append(decoder.add([], final=True, is_cut=is_cut))
    assert "".join(parts) == whole.add([t for canvas in canvases for t in canvas], final=True, is_cut=is_cut)


def test_thoughts_are_left_out_even_across_canvases():
    parser = ReplyParser(ByteTokenizer())
    first, second = parser.add([256, *b"thought\n", *b"hm"]), parser.add([*b"m", 257, *b"yes"])
    last = parser.end(is_cut=False)
    assert first.content == "" and second.content + last.content == "yes"
    assert first.thought + second.thought + last.thought == "hmm"
