"""Prefixes on disk: the same numbers in the next process, and nothing foreign or damaged is taken for one's own."""

import os
import shutil
import stat

import mlx.core as mx
import pytest

from benchmarks.models import config_dict, write_random
from mlx_dgemma import DGemmaError, load
from mlx_dgemma.text.kept import SUFFIX, PrefixFolder, identity_of
from mlx_dgemma.text.prefixes import PrefixStore
from tests.command import in_process

CANVAS, IDS = 16, list(range(1, 60))


def make(folder, seed: int = 0):
    text = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "sliding_window": 8}
    text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return load(write_random(folder, config_dict(CANVAS, **text), seed))[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(tmp_path_factory.mktemp("model"))


def opened(folder, model, **options) -> tuple[PrefixStore, PrefixFolder, list[str]]:
    told: list[str] = []
    shelf = PrefixFolder(folder, model, tell=told.append, **options)
    return PrefixStore(shelf=shelf), shelf, told


def written(folder, model, ids=IDS, ends=(40, 55), **options) -> PrefixStore:
    store, _, told = opened(folder, model, **options)
    store.prefix(model, ids, ends)
    store.save()
    assert told == []
    return store


def logits(model, cache) -> list:
    return model.denoise(mx.arange(CANVAS)[None], cache).tolist()


def test_the_next_process_goes_on_with_the_same_numbers(tmp_path, model):
    store = written(tmp_path / "kept", model)
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name.endswith(SUFFIX) and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    for ids, cached in ((IDS, 55), ([*IDS[:50], 400, 401], 40), ([*IDS[:30], 9], 0)):
        again, _, told = opened(tmp_path / "kept", model)
        cache, length = again.prefix(model, ids, {len(ids)})
        assert (length, told) == (cached, [])
        if cached:
            assert logits(model, cache) == logits(model, store.prefix(model, ids, ())[0])


def test_a_conversation_that_goes_on_takes_the_place_of_its_file(tmp_path, model):
    written(tmp_path, model)
    store, _, _ = opened(tmp_path, model)
    longer = [*IDS, *range(100, 140)]
    assert store.prefix(model, longer, {90})[1] == 55
    store.save()
    assert len(list(tmp_path.iterdir())) == 1
    store.save()
    assert opened(tmp_path, model)[0].prefix(model, longer, ())[1] == 90


def test_what_is_there_is_not_written_again(tmp_path, model, monkeypatch):
    written(tmp_path, model)
    again = []
    monkeypatch.setattr(PrefixFolder, "_write", lambda shelf, file, entry: again.append(file))
    store, _, _ = opened(tmp_path, model)
    assert store.prefix(model, IDS, {40, 55})[1] == 55
    store.save()
    assert again == [] and len(list(tmp_path.iterdir())) == 1


def test_the_oldest_files_make_room(tmp_path, model):
    first = written(tmp_path, model)
    size = next(tmp_path.iterdir()).stat().st_size
    os.utime(next(tmp_path.iterdir()), (1, 1))
    for n in (400, 410, 420):
        written(tmp_path, model, [n, *IDS[1:]], most=3 * size + size // 2)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 3 * size + size // 2
    assert opened(tmp_path, model)[0].prefix(model, IDS, ())[1] == 0  # the first went
    assert opened(tmp_path, model)[0].prefix(model, [420, *IDS[1:]], ())[1] == 55
    written(tmp_path, model, [430, *IDS[1:]], most=first.nbytes // 2)
    assert opened(tmp_path, model)[0].prefix(model, [430, *IDS[1:]], ())[1] == 0


def test_damaged_files_are_left_alone_with_a_line(tmp_path, model):
    written(tmp_path / "good", model)
    data = next((tmp_path / "good").iterdir()).read_bytes()
    header = int.from_bytes(data[:8], "little")
    places = [0, 9, 8 + header // 2, 8 + header, 8 + header + 100, len(data) - 1]
    damaged = [data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :] for at in places]
    for number, content in enumerate([*damaged, data[: len(data) // 2], data[:4], b""]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / ("x" + SUFFIX)).write_bytes(content)
        store, _, told = opened(folder, model)
        cache, cached = store.prefix(model, IDS, ())
        if cached:  # a byte of the header that says nothing, padding say
            assert logits(model, cache) == logits(model, PrefixStore().prefix(model, IDS, ())[0])
        else:
            assert len(told) == 1 and "is left alone" in told[0] and "\n" not in told[0]
        assert (folder / ("x" + SUFFIX)).read_bytes() == content


def test_another_checkpoints_are_left_alone(tmp_path, model):
    other = make(tmp_path / "other", seed=1)
    assert identity_of(other) != identity_of(model) == identity_of(model)
    written(tmp_path / "kept", model)
    store, _, told = opened(tmp_path / "kept", other)
    assert store.prefix(other, IDS, ())[1] == 0 and len(told) == 1 and "another checkpoint" in told[0]


def test_what_is_no_file_of_ours_is_not_touched(tmp_path, model):
    os.mkfifo(tmp_path / ("pipe" + SUFFIX))
    (tmp_path / ("folder" + SUFFIX)).mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ("link" + SUFFIX)).symlink_to(tmp_path / "nowhere")
    written(tmp_path, model, most=1)
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 4


def test_a_folder_that_cannot_be_is_one_line(tmp_path, model):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(DGemmaError, match="no folder for prefixes"):
            PrefixFolder(folder, model, tell=print)
    store = written(tmp_path / "gone", model)
    shutil.rmtree(tmp_path / "gone")
    store.prefix(model, [9, 9, 9], {3})
    with pytest.raises(DGemmaError, match="prefixes cannot be written"):
        store.save()


def test_on_the_command_line(tmp_path, capsys):
    asked = ("spell 1842", "--prefix-cache", str(tmp_path / "kept"), "--json")
    first, second = (in_process(capsys, *asked) for _ in range(2))
    assert first[0] == second[0] == 0 and '"cached_tokens": 0' in first[1] and '"cached_tokens": 0' not in second[1]
    code, _, err = in_process(capsys, "spell 1842", "--prefix-cache", "/dev/null")
    assert code == 1 and "no folder for prefixes" in err
