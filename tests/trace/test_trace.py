"""Traces: what is recorded is what happened, files are whole or refused, replays are the run."""

import dataclasses
import json
import os
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request, load
from mlx_dgemma.diffusion.canvas import generate_canvases
from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.diffusion.settling import Settling
from mlx_dgemma.diffusion.work import Work
from mlx_dgemma.files import write_whole
from mlx_dgemma.model.prefill import prefill
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.trace.contents import ARRAYS, METER
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import Trace, load_trace, replay
from tests.conftest import CANVAS, ReplayedNoise

ROOT = Path(__file__).parents[2]
PROMPT = "count 18 to 50"  # two canvases


@pytest.fixture(scope="module")
def embedded():
    return load()


@pytest.fixture(scope="module")
def run(embedded):
    """A run of the embedded checkpoint: its events, as they came, and its recorder."""
    config = GenerationConfig(entropy_bound=0.2)
    engine, request = Engine(*embedded, "embedded"), Request(PROMPT, settings=config, seed=3)
    recorder = Recorder(engine, request)
    return list(record(engine.stream(request), recorder)), recorder


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "run.npz"
    run[1].trace().save(path)
    return path


def assert_same(event, other):
    """Two events with equal fields, arrays included."""
    assert type(event) is type(other)
    for field in dataclasses.fields(event):
        if field.name in ("finished_rows", "spoken"):  # not in a trace
            continue
        one, two = getattr(event, field.name), getattr(other, field.name)
        if isinstance(one, mx.array):
            np.testing.assert_array_equal(np.array(one), np.array(two), strict=False, err_msg=field.name)
            assert one.dtype == two.dtype or {one.dtype, two.dtype} <= {mx.int32, mx.uint32}
        else:
            assert one == two, field.name


def test_a_replay_is_the_run(run, saved):
    events, _ = run
    replayed = list(replay(load_trace(saved)))
    assert [type(e) for e in replayed] == [type(e) for e in events]
    assert sum(isinstance(e, TextCanvas) for e in events) == 2
    for event, other in zip(events, replayed, strict=True):
        assert_same(event, other)


def test_arrays_have_the_documented_types_and_axes(run, saved):
    trace = load_trace(saved)
    sizes = {"S": sum(isinstance(e, DenoisingStep) for e in run[0]), "B": 1, "C": 64, "P": len(trace.prompt_ids)}
    for name, (dtype, axes) in ARRAYS.items():
        array = getattr(trace, name)
        assert (array.dtype, array.shape) == (dtype, tuple(sizes[axis] for axis in axes)), name
    assert (trace.entropy >= 0).all() and (trace.seconds > 0).all()
    assert (np.diff(trace.elapsed) > 0).all() and trace.elapsed[-1] >= trace.seconds.sum()
    np.testing.assert_array_equal(trace.accepted.sum((1, 2)), trace.accepted_count)
    np.testing.assert_allclose(trace.entropy.mean((1, 2)), trace.mean_entropy, rtol=1e-5)


def test_the_file_tells_what_the_run_was(embedded, run, saved):
    model, tokenizer = embedded
    trace = load_trace(saved)
    assert (trace.prompt, trace.seed, trace.model_id, trace.finish_reason) == (PROMPT, 3, "embedded", "stop")
    assert trace.text == "".join(e.text for e in run[0] if isinstance(e, TextCanvas)) and trace.text.endswith("49 50")
    assert GenerationConfig(**trace.settings) == GenerationConfig(entropy_bound=0.2).over(model.generation_config)
    assert trace.settings["eos_token_id"] == model.generation_config.eos_token_id
    assert tokenizer.decode(trace.prompt_ids.tolist()) == f"<bos><|turn>user\n{PROMPT}<turn|>\n<|turn>model\n"
    assert trace.versions == {"mlx-dgemma": "0.1.0", "mlx": mx.__version__}
    occurring = {*trace.canvas.ravel().tolist(), *trace.draft.ravel().tolist(), *trace.prompt_ids.tolist()}
    assert set(trace.pieces) == occurring
    assert trace.pieces[tokenizer.convert_tokens_to_ids("5")] == "5" and trace.pieces[1] == "<eos>"


def test_rows_and_token_ids_without_text(model, tmp_path):
    """`generate_canvases` denoises several rows and knows no text: traced and replayed all the same."""
    config = GenerationConfig(max_denoising_steps=3).over(model.generation_config)
    cache = model.make_cache()
    prefill(model, mx.array([[1, 2], [1, 2]]), cache)
    request = Request([1, 2], settings=config, noise=ReplayedNoise(0))
    recorder = Recorder(Engine(model, None), request)
    events = list(record(generate_canvases(model, cache, config, request.noise, 2, batch=2), recorder))
    recorder.trace().save(tmp_path / "t.npz")
    trace = load_trace(tmp_path / "t.npz")
    assert trace.canvas.shape == (6, 2, CANVAS) and trace.canvas_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert (trace.seed, trace.pieces, trace.text, trace.finish_reason) == (None, {}, "", "length")
    assert [type(e) for e in events if not isinstance(e, DenoisingStep)] == [CommittedCanvas] * 2
    for event, other in zip(events, replay(trace), strict=True):
        assert_same(event, other)


def test_clamped_positions_are_kept(embedded, run):
    clamped = mx.arange(64)[None] < 5
    recorder = Recorder(Engine(*embedded), Request(PROMPT))
    first, second = [e for e in run[0] if isinstance(e, DenoisingStep)][:2]
    recorder.add(dataclasses.replace(first, clamped=clamped))
    recorder.add(second)
    trace = recorder.trace()
    assert trace.clamped.sum((1, 2)).tolist() == [5, 0]
    one, two = replay(trace)
    np.testing.assert_array_equal(np.array(one.clamped), np.array(clamped))
    assert two.clamped is None and trace.finish_reason == "interrupted"


@pytest.mark.parametrize(
    "plan", [CanvasPlan("1{3}2", "12", 0.5, 7), CanvasPlan((5, None, 6), (7, 8)), CanvasPlan()], ids=repr
)
def test_what_a_canvas_started_from_is_kept(embedded, run, tmp_path, plan):
    recorder = Recorder(Engine(*embedded), Request("sudoku ................", canvas=plan))
    recorder.add(run[0][0])
    recorder.trace().save(tmp_path / "t.npz")
    assert load_trace(tmp_path / "t.npz").plan == plan


def test_a_trace_from_before_there_were_plans_loads(saved, tmp_path):
    path = altered(saved, tmp_path / "old.npz", without=["plan"])
    assert load_trace(path).plan == CanvasPlan() and load_trace(path).text == load_trace(saved).text


def test_a_trace_from_before_the_meter_loads(saved, tmp_path):
    path = altered(saved, tmp_path / "old.npz", about={"version": 1}, dropped=["computed", *METER])
    old, new = load_trace(path), load_trace(saved)
    assert old.computed.shape == (len(old.step), 64) and old.computed.all() and old.text == new.text
    assert all(
        event.computed is None and event.work == Work() for event in replay(old) if isinstance(event, DenoisingStep)
    )
    assert new.rows.tolist() == [64] * len(new.step)
    assert "is damaged" in refused(altered(path, tmp_path / "x.npz", about={"version": 2}))


def test_what_settled_is_kept(embedded, tmp_path):
    settings = GenerationConfig(settling=Settling(start=0.25))
    engine, request = Engine(*embedded, "embedded"), Request(PROMPT, settings=settings, seed=3)
    recorder = Recorder(engine, request)
    events = list(record(engine.stream(request), recorder))
    recorder.trace().save(tmp_path / "t.npz")
    trace = load_trace(tmp_path / "t.npz")
    for event, other in zip(events, replay(trace), strict=True):
        assert_same(event, other)
    np.testing.assert_array_equal(trace.computed.sum(1), trace.rows)  # of one row of a batch
    assert trace.rows[0] == 16 and len(set(trace.rows.tolist())) > 2
    assert (trace.scored % trace.rows == 0).all() and trace.mixed[-1] <= trace.scored[-1]


def test_replay_at_a_speed_waits_as_long(run, monkeypatch):
    naps = []
    monkeypatch.setattr(time, "sleep", naps.append)
    trace = run[1].trace()
    assert len(list(replay(trace, speed=2.0))) == len(run[0])
    np.testing.assert_allclose(naps, trace.seconds / 2)
    for speed in (0, -1, float("nan")):
        with pytest.raises(DGemmaError, match="speed must be a number > 0"):
            replay(trace, speed)


# ---- files


def refused(path) -> str:
    with pytest.raises(DGemmaError) as error:
        load_trace(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_a_missing_file_and_a_folder(tmp_path):
    assert "No such file" in refused(tmp_path / "nothing.npz")
    assert "Is a directory" in refused(tmp_path)


def test_foreign_files(tmp_path):
    path = tmp_path / "x.npz"
    for content in (b"", b"hello", b"\x93NUMPY\x01\x00", b"<html>"):
        path.write_bytes(content)
        assert "is not a trace" in refused(path)
    np.savez(path, canvas=np.zeros(3))
    assert "is not a trace" in refused(path)
    np.savez(path, about=np.frombuffer(b'{"format": "other"}', np.uint8))
    assert "is not a trace" in refused(path)


def altered(saved: Path, path: Path, about=None, without=(), dropped=(), **arrays) -> Path:
    with np.load(saved) as content:
        new = {name: array for name, array in content.items() if name not in dropped}
    new |= arrays
    said = json.loads(new["about"].tobytes()) | (about or {})
    kept = {name: value for name, value in said.items() if name not in without}
    new["about"] = np.frombuffer(json.dumps(kept).encode(), np.uint8)
    np.savez(path, **new)
    return path


def test_a_newer_version_says_upgrade(saved, tmp_path):
    path = altered(saved, tmp_path / "x.npz", about={"version": 3})
    assert "is a trace of version 3, this package reads 2; upgrade mlx-dgemma" in refused(path)


def test_contents_that_do_not_fit_together(saved, tmp_path):
    path, trace = tmp_path / "x.npz", load_trace(saved)
    for name, array in (
        ("entropy", trace.entropy[:-1]),
        ("draft", trace.draft.astype(np.int64)),
        ("temperature", trace.temperature[:, None]),
        ("canvas_index", trace.canvas_index[::-1]),
        ("canvas", np.array([None])),
    ):
        assert "is damaged" in refused(altered(saved, path, **{name: array}))
    plans = ({"given": 3}, {"draft": ["a"]}, {"noise": "x"}, {"what": 1}, None)
    lists = ({"committed": [{}]}, {"pieces": 3}, {"committed": [{"stats": None, "what": 1}]})
    for about in (*lists, *({"plan": plan} for plan in plans)):
        assert "is damaged" in refused(altered(saved, path, about=about))
    none = {n: getattr(trace, n)[:0] for n, (_, axes) in ARRAYS.items() if axes[0] == "S"}
    assert "is damaged" in refused(altered(saved, path, **none))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(saved, tmp_path_factory, data):
    whole = saved.read_bytes()
    path = tmp_path_factory.mktemp("damaged") / "x.npz"
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        refused(path)
        return
    content = bytearray(whole)
    content[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert isinstance(load_trace(path), Trace)  # some bytes of an archive say nothing (times, attributes)
    except DGemmaError:
        refused(path)


def test_what_stood_there_stays_until_the_new_file_is_whole(tmp_path):
    path = tmp_path / "run.npz"
    path.write_text("old")

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DGemmaError, match="could not be written: No space left on device"):
        write_whole(path, fails)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.npz"]


def test_a_link_keeps_being_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", lambda file: file.write(b"x"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"x"
