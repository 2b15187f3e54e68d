"""Traces from anywhere: what is in the file is what a run can have recorded, or one line."""

import io
import json
import os
import zipfile

import numpy as np
import pytest

from mlx_dgemma import DGemmaError
from mlx_dgemma.report.__main__ import main
from mlx_dgemma.trace import contents, load_trace
from tests.fuzz import traces


def refused(path) -> str:
    with pytest.raises(DGemmaError) as error:
        load_trace(path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def written(path, arrays, **about):
    said = {**json.loads(arrays["about"].tobytes()), **about}
    np.savez(path, **{**arrays, "about": np.frombuffer(json.dumps(said).encode(), np.uint8)})
    return path


CANVAS = {"canvas_index": 0, "steps": 1, "token_count": 1, "text": "a", "finish_reason": "stop", "stats": None}
STATS = dict.fromkeys(["prompt_tokens", "tokens", "canvases", "steps", "peak_memory", "prompt_seconds", "seconds"], 1)


@pytest.mark.parametrize(
    "about",
    [
        {"prompt": 5}, {"prompt": [1.5]}, {"prompt": [{"role": "user"}]}, {"prompt": {}}, {"settings": []},
        {"settings": {"eos_token_id": "x"}}, {"settings": {"eos_token_id": [{}]}}, {"seed": "x"}, {"seed": [1]},
        {"settings": {"confidence_threshold": "x"}}, {"settings": {"confidence_threshold": float("nan")}},
        {"model_id": 5}, {"versions": 5}, {"versions": {"mlx": 5}}, {"finish_reason": None}, {"pieces": [[1, 5]]},
        {"pieces": [["1", "a"]]}, {"pieces": 5}, {"committed": 5}, {"committed": [5]}, {"plan": {"given": 5}},
        {"committed": [{**CANVAS, "text": 5}]}, {"committed": [{**CANVAS, "token_count": 1000}]},
        {"committed": [{**CANVAS, "canvas_index": -1}]}, {"committed": [{**CANVAS, "steps": 10**400}]},
        {"committed": [{**CANVAS, "stats": {**STATS, "seconds": "x"}}]}, {"plan": {"noise": 7, "draft": [1]}},
        {"committed": [{**CANVAS, "stats": {**STATS, "seconds": 10**400}}]}, {"plan": {"seed": 0.5}}, {"plan": [1]},
        {"plan": {"draft": [1.5]}}, {"version": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_no_run_has(tmp_path, about):
    assert "is damaged" in refused(written(tmp_path / "t.npz", traces.recorded(), **about))


@pytest.mark.parametrize("count", [-1, 2**63 - 1])
def test_a_meter_that_no_run_has(tmp_path, count):
    arrays = traces.recorded() | {"rows": np.full_like(traces.recorded()["rows"], count)}
    assert "what its steps computed is no count" in refused(written(tmp_path / "t.npz", arrays))


@pytest.mark.parametrize("axis", "SBC")
def test_runs_of_nothing(tmp_path, axis):
    arrays = dict(traces.recorded())
    for name, (_, axes) in contents.ARRAYS.items():
        if axis in axes:
            arrays[name] = np.take(arrays[name], range(0), axis=axes.index(axis))
    assert "its steps are not those of a run" in refused(written(tmp_path / "t.npz", arrays))


def with_member(path, name: str, content: bytes):
    """The good trace with other bytes for one of its arrays."""
    made = io.BytesIO()
    np.savez(made, **traces.recorded())
    with zipfile.ZipFile(made) as good, zipfile.ZipFile(path, "w") as bad:
        for member in good.namelist():
            bad.writestr(member, content if member == name else good.read(member))
    return path


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(99999, 99999, 99999)", "(-1,)", "((((", "1,\n(", "'x'"])
def test_shapes_that_no_array_has(tmp_path, shape):
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    assert "is damaged" in refused(with_member(tmp_path / "t.npz", "canvas.npy", member))


def test_a_member_that_is_no_array(tmp_path):
    assert "canvas is no array" in refused(with_member(tmp_path / "t.npz", "canvas.npy", b"no array"))


def test_arrays_too_large_for_any_run_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_LARGEST", 1000)
    assert "its arrays are too large" in refused(written(tmp_path / "t.npz", traces.recorded()))


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "run.npz")
    assert "Not an ordinary file" in refused(tmp_path / "run.npz")
    assert main([str(tmp_path / "run.npz")]) == 1
    assert "Not an ordinary file" in capsys.readouterr().err


def test_a_report_writes_all_or_nothing(tmp_path, capsys):
    path = written(tmp_path / "run.npz", traces.recorded())
    for option in ("--svg", "--gif", "--png"):
        assert main([str(path), option, str(tmp_path / "no" / "such")]) == 1
        assert "there is no folder" in capsys.readouterr().err
        assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]
