"""Tokenizers from files against transformers' AutoTokenizer; a tokenizer.model alone; what cannot be read."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from mlx_dgemma import DGemmaError, Engine, GenerationConfig, Request, load
from mlx_dgemma.checkpoint.loading import EMBEDDED, load_tokenizer
from mlx_dgemma.checkpoint.pieces import SentencePieceTokenizer

CORPUS = [
    "Why is the sky blue? Because air scatters blue light more than red light.",
    "A canvas of random tokens is refined, all positions at once, until it is confident and stable.",
    "def accept(entropy, bound):\n    return entropy.cumsum() - entropy <= bound\n",
    "Größe, naïve café, 日本語のテキスト, emoji 😀 and tabs\tand  two spaces",
]
MARKS = ["<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", '<|"|>']
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *MARKS]
TEXTS = st.lists(
    st.sampled_from([*SPECIAL, "blue light", " ", "  ", "\n", "canvas", "ö", "日本", "😀", "\x00", "<|turn", "é"])
    | st.text(max_size=8),
    max_size=12,
).map("".join)
TEMPLATE = """{%- macro turn(role, text) -%}
<|turn>{{ role }}
{{ text | trim }}<turn|>
{%- endmacro -%}
{{ bos_token }}
{%- set ns = namespace(count=0) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'skip' %}{% continue %}{% endif -%}
    {%- if message['role'] == 'bad' %}{{ raise_exception('no such role') }}{% endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {% generation %}{{ turn(message['role'], message['content']) }}{% endgeneration %}
{%- endfor -%}
{%- if tools %}{{ tools | tojson }}{{ {'b': '<é>', 'a': 1} | tojson(indent=1, sort_keys=true) }}{% endif -%}
{{ ns.count }}{% if enable_thinking %}<|think|>{% endif %}
{%- if add_generation_prompt %}
<|turn>model
{% endif %}
"""


def gemma_like(folder, *, adds_bos: bool):
    """A small tokenizer with Gemma's pipeline: BPE with byte fallback, spaces as ▁, marks in the vocabulary."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *alphabet], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    backend = Tokenizer.from_str(json.dumps(content))
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
        )
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "eot_token": "<turn|>",
        "soc_token": "<|channel>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def spelled_out(folder):
    """As older tools write it: tokens as objects, roles in a map of their own, the template inside."""
    folder.mkdir()
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "[X]": 3, "[Y]": 4, "[Z]": 5}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("[X]", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": {"content": "[X]", "lstrip": False}, "pad_token": "[Y]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["[Z]"],
        "chat_template": [{"name": "other", "template": "no"}, {"name": "default", "template": TEMPLATE}],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("tokenizers")
    return {
        "embedded": EMBEDDED,
        "gemma": gemma_like(base / "gemma", adds_bos=False),
        "gemma with bos": gemma_like(base / "bos", adds_bos=True),
        "spelled out": spelled_out(base / "old"),
    }


@pytest.fixture(scope="module", params=["embedded", "gemma", "gemma with bos", "spelled out"])
def both(folders, request):
    folder = folders[request.param]
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@given(TEXTS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_texts_become_the_same_ids(both, text, special):
    ours, theirs = both
    assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special)


@given(st.data(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_ids_become_the_same_texts(both, data, skip):
    ours, theirs = both
    ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), max_size=20))
    assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)


def test_the_vocabulary_and_the_roles_are_the_same(both):
    ours, theirs = both
    assert ours.get_vocab() == theirs.get_vocab()
    for role in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(ours, role) == getattr(theirs, role)
    assert ours.convert_tokens_to_ids("no such token") is None
    assert ours.encode("a" * 5000, add_special_tokens=False) == theirs.encode("a" * 5000, add_special_tokens=False)


CONVERSATION = [
    {"role": "system", "content": " be brief \n"},
    {"role": "skip", "content": "never seen"},
    {"role": "user", "content": "Größe <é> & 日本語?"},
]
TOOLS = [{"name": "look", "parameters": {"z": "<é>", "a": [1, None, True]}}]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_conversations_become_the_same_text(folders, thinking, opened, tools):
    for name in ("gemma", "spelled out"):
        ours, theirs = load_tokenizer(folders[name]), AutoTokenizer.from_pretrained(folders[name])
        given = {"add_generation_prompt": opened, "enable_thinking": thinking, "tools": tools}
        assert ours.chat_template == TEMPLATE
        told = theirs.apply_chat_template(CONVERSATION, tokenize=False, **given)
        assert ours.apply_chat_template(CONVERSATION, tokenize=False, **given) == told
        ids = ours.apply_chat_template(CONVERSATION, tokenize=True, **given)
        assert ids == theirs.encode(told, add_special_tokens=False)


def test_a_template_may_refuse(folders):
    with pytest.raises(DGemmaError, match="refuses these messages: no such role"):
        load_tokenizer(folders["gemma"]).apply_chat_template([{"role": "bad", "content": ""}])


def test_a_template_cannot_leave_its_sandbox(folders):
    tokenizer = load_tokenizer(folders["gemma"])
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DGemmaError, match="refuses these messages"):
        tokenizer.apply_chat_template([{"role": "user", "content": ""}])


# ---- tokenizer.model alone


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A folder with a tokenizer.model and nothing else, trained here in Gemma's manner."""
    folder, model = tmp_path_factory.mktemp("pieces"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=model, model_type="bpe", vocab_size=420, byte_fallback=True,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        split_digits=True, character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
        eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=MARKS, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def test_a_tokenizer_model_alone_loads(pieces):
    tokenizer = load_tokenizer(pieces)
    assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.chat_template is None
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert tokenizer.convert_ids_to_tokens([2, tokenizer.get_vocab()["<|turn>"]]) == ["<bos>", "<|turn>"]
    ids = tokenizer.encode("<bos><|turn>user\nWhy is the sky blue?<turn|>")
    assert ids[:2] == [2, tokenizer.get_vocab()["<|turn>"]]
    assert tokenizer.decode(ids) == "<bos><|turn>user\nWhy is the sky blue?<turn|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<|turn>user\nWhy is the sky blue?<turn|>"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40))
@settings(max_examples=150, deadline=None)
def test_plain_text_is_what_sentencepiece_makes_of_it(pieces, text):
    tokenizer = load_tokenizer(pieces)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    ids = tokenizer.encode(text)
    assert ids == processor.encode(text)
    assert tokenizer.decode(ids) == processor.decode(ids) == text.replace("▁", " ")


def test_files_beside_a_tokenizer_model_are_read(pieces, tmp_path):
    shutil.copy(pieces / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<eos>", "eot_token": "<turn|>"}))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}{{ eot_token }}")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "canvas"}], tokenize=True)
    assert tokenizer.decode(ids) == "<bos>canvas<turn|>" and tokenizer.decode(ids, True) == "canvas"


def test_text_in_text_out_through_a_tokenizer_model(folder, pieces, tmp_path):
    """The random model has 120 ids: a small vocabulary, and what the model makes of it."""
    shutil.copytree(folder, tmp_path / "c")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcdefghij klmnop"] * 20), model_writer=model, model_type="char", vocab_size=20,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "c" / "tokenizer.model").write_bytes(model.getvalue())
    engine = Engine.load(tmp_path / "c")
    settings = GenerationConfig(max_denoising_steps=1, max_new_tokens=4, eos_token_id=[])
    result = engine.generate(Request("abc", settings=settings, canvas=[5, 6, 7, 8], chat_template=False))
    assert result.text == engine.tokenizer.decode([5, 6, 7, 8]) and len(result.text.strip()) >= 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.model", b"not a model"),
        ("tokenizer.model", b""),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{"),
    ],
)
def test_what_cannot_be_read_is_one_line(folders, tmp_path, name, content):
    shutil.copytree(folders["gemma"], tmp_path / "c")
    (tmp_path / "c" / name).write_bytes(content)
    if name == "tokenizer.model":
        (tmp_path / "c" / "tokenizer.json").unlink()
    with pytest.raises(DGemmaError, match="cannot be read") as error:
        load_tokenizer(tmp_path / "c")
    assert "\n" not in str(error.value)


def test_neither_mlx_lm_nor_transformers_is_imported():
    code = "import sys; from mlx_dgemma import Engine, Request; Engine.load().generate(Request('roman 3'))\n"
    code += "assert not {'mlx_lm', 'transformers', 'torch', 'sentencepiece'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_foreign_tokenizer_serves_as_well():
    model, tokenizer = load()
    foreign = AutoTokenizer.from_pretrained(EMBEDDED)
    request = Request("count 18 to 50", seed=2)
    assert Engine(model, foreign).generate(request).text == Engine(model, tokenizer).generate(request).text
