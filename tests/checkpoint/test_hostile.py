"""Checkpoint folders in which something else stands where a file is expected, or files say what cannot be."""

import json
import os
import struct

import pytest

from mlx_dgemma import DGemmaError, Engine, load
from mlx_dgemma.checkpoint.headers import read_header
from tests.fuzz import headers, small, tokenizers

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return small.copy(tmp_path)


def refused(folder, **options) -> str:
    with pytest.raises(DGemmaError) as error:
        load(folder, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_an_index_that_is_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / INDEX)
    assert "is not a safetensors index" in refused(folder)


def test_an_index_that_is_a_folder(folder):
    (folder / INDEX).mkdir()
    assert "is not a safetensors index" in refused(folder)


def test_sums_that_are_a_pipe_are_not_waited_for(folder):
    os.mkfifo(folder / "convert.json")
    assert "no convert.json with SHA-256 sums" in refused(folder, verify=True)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"sha256": 5}', '{"sha256": "ab"}', '{"sha256": [1]}'])
def test_sums_that_are_none(folder, content):
    (folder / "convert.json").write_text(content)
    assert "no convert.json with SHA-256 sums" in refused(folder, verify=True)


def test_a_name_too_long_for_any_folder():
    assert "cannot be read: File name too long" in refused("x" * 5000)


@pytest.mark.parametrize("about", [{"format": 5}, {"format": ["pt"]}, 7, "pt"])
def test_metadata_that_are_no_texts(folder, about):
    path = folder / headers.WEIGHTS
    _, header, data = headers.read(path)
    text = json.dumps({**json.loads(header), "__metadata__": about}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert "is not a safetensors file" in refused(folder)


def test_no_metadata_at_all_is_what_mlx_writes(folder):
    path = folder / headers.WEIGHTS
    _, header, data = headers.read(path)
    text = json.dumps({**json.loads(header), "__metadata__": None}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert Engine.load(folder).generate(small.REQUEST).text == small.text()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_headers_that_python_reads_and_mlx_does_not(folder, encoding):
    path = folder / headers.WEIGHTS
    _, header, data = headers.read(path)
    text = header.decode().encode(encoding)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert "download it again" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_attention_heads": 2**30, "head_dim": 1024}, "no arrays have its sizes"),
        ({"num_hidden_layers": 2**31 - 1, "layer_types": None}, "num_hidden_layers is 2147483647, more than"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ],
)
def test_sizes_that_nothing_has(folder, changes, named):
    (folder / "config.json").write_text(json.dumps({**small.CONFIG, "text_config": {**small.TEXT, **changes}}))
    assert named in refused(folder)


@pytest.mark.parametrize("ids", ["x", [1, "x"], [-1], 1.5, [True], {"a": 1}])
def test_stop_tokens_that_are_none(folder, ids):
    (folder / "config.json").write_text(json.dumps({**small.CONFIG, "eos_token_id": ids}))
    assert "eos_token_id" in refused(folder)


def test_pieces_fewer_than_the_models_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(tokenizers.pieces())
    tokenizer = Engine.load(folder).tokenizer
    size = tokenizer.processor.get_piece_size()
    known = tokenizer.encode("sort")
    assert size < small.VOCABULARY
    assert tokenizer.decode([*known, size, 99]) == tokenizer.decode(known)
    assert tokenizer.convert_ids_to_tokens([size]) == [""]


def test_a_good_header_stays_good():
    assert len(read_header(small.original() / headers.WEIGHTS)) > 20


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_an_integer_may_stand_where_a_float_is_meant(folder, kind):
    texts = []
    for theta in (2**63, float(2**63)):
        rope = {**small.TEXT["rope_parameters"]}
        rope[kind] = {**rope[kind], "rope_theta": theta}
        text = {**small.TEXT, "rope_parameters": rope}
        (folder / "config.json").write_text(json.dumps({**small.CONFIG, "text_config": text}))
        texts.append(Engine.load(folder).generate(small.REQUEST).text)
    assert texts[0] == texts[1]
