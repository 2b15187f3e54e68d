"""Traces: altered bytes and altered arrays of a run.npz, read back, and shown in every form a report has."""

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dgemma.report.__main__ import main
from mlx_dgemma.text.request import Request
from mlx_dgemma.trace.contents import ARRAYS
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import load_trace
from tests.fuzz import files, mutations, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, check_ended, check_kept, command, demand, state

PLAY = ("--play", "--speed", "1e9")
OUTPUTS = ((), ("--svg",), ("--gif",), ("--png",), ("--svg", "--columns", "3"), PLAY, PLAY, ("-o", "out.html"))
OPENED = "opened"  # the file that a payload would make


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.file), "w")


@cache
def recorded() -> dict[str, np.ndarray]:
    """The arrays of a good trace, by name."""
    engine, request = small.engine(), Request("sort: d b a c", seed=3, canvas="ab{20}c")
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    file = small.original().parent / "run.npz"
    recorder.trace().save(file)
    with np.load(file, allow_pickle=False) as content:
        return dict(content)


def make(random: random.Random) -> tuple[int, ...]:
    return mutations.seeds(random, 2)


def run(made: tuple[int, ...], folder: Path) -> bool:
    path, refusals, chance = folder / "run.npz", Refusals(), random.Random(made[0])
    write(path, made, folder / OPENED)
    before = state(folder)
    with refusals.allowed():
        check_trace(path, folder)
    output = list(chance.choice(OUTPUTS))
    if "-o" in output:
        output[1] = str(folder / output[1])
    ended = command(main, [path, *output], terminal="--play" in output)
    shown = check_ended(ended)
    demand(shown == refusals.none, f"loads: {refusals.none}, is shown: {shown}: {ended.err}")
    after = state(folder)
    check_kept(before, after)
    demand(OPENED not in after, "a pickled object was opened")
    demand(shown or after == before, f"files of a report that failed: {after.keys() - before.keys()}")
    return refusals.none


def check_trace(path: Path, folder: Path) -> None:
    """It loads, is the same after another round, and can be played."""
    trace, again = load_trace(path), folder / "again.npz"
    trace.save(again)
    other = load_trace(again)
    again.unlink()
    same = all(np.array_equal(vars(trace)[n], vars(other)[n], equal_nan=n not in _WHOLE) for n in ARRAYS)
    rest = [name for name in vars(trace) if name not in ARRAYS]
    texts = all(repr(vars(trace)[name]) == repr(vars(other)[name]) for name in rest)
    demand(same and texts, "it is another trace when it has been saved and loaded")


_WHOLE = [name for name, (dtype, _) in ARRAYS.items() if np.dtype(dtype).kind in "ib"]


def write(path: Path, changes: tuple[int, ...], opened: Path) -> None:
    """A trace with these changes."""
    arrays, late = {name: array.copy() for name, array in recorded().items()}, []
    for seed in changes:
        chance = random.Random(seed)
        ways = ["about"] * 5 + ["values"] * 4 + ["shape"] * 2 + ["type", "pickle", "bytes", "member", "file"]
        way = chance.choice(ways)
        if way == "about":
            about = json.loads(recorded()["about"].tobytes())
            arrays["about"] = np.frombuffer(mutations.edited(about, (chance.randrange(2**32),)), np.uint8)
        elif way in ("bytes", "member", "file"):
            late.append((way, chance))
        else:
            name = chance.choice(list(arrays))
            arrays[name] = changed(arrays, name, way, chance, opened)
    np.savez_compressed(path, **arrays)
    for way, chance in late:
        if way == "file":
            files.put(path, files.odd(chance))
        elif path.is_file() and (way == "bytes" or zipfile.is_zipfile(path)):
            path.write_bytes(_member(path, chance) if way == "member" else mutations.spoiled(path.read_bytes(), chance))


def changed(arrays: dict[str, np.ndarray], name: str, way: str, chance: random.Random, opened: Path) -> np.ndarray:
    """Another array in place of one."""
    array = arrays[name]
    if way == "pickle":
        return np.array([Payload(opened)] * chance.choice([1, 2]), dtype=object)
    if way == "type":
        return array.astype(chance.choice(["i8", "f4", "?", ">i4", "U4", "u1", "f8", "S3", "c8"]))
    if way == "shape":
        ways = [array[:0], array[..., :0], array[..., None], array.ravel(), array[:1], array[-1:], np.array(3)]
        short = chance.choice(ways)
        if chance.random() < 0.6:  # all that share an axis, so that nothing but emptiness is wrong
            axis, size = chance.choice("SBC"), chance.choice([0, 1, 2])
            for other, (_, axes) in ARRAYS.items():
                if axis in axes and arrays[other].ndim == len(axes):
                    arrays[other] = np.take(arrays[other], range(size), axis=axes.index(axis), mode="clip")
            return arrays[name]
        return short
    values = [0, 1, -1, 5, 2**31 - 1, -(2**31), 99, 100, np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-320]
    value = chance.choice(values)
    if array.dtype.kind not in "fib":
        return array  # an earlier change made it objects or texts
    if array.dtype.kind in "ib":
        value = int(value) if np.isfinite(value) and abs(value) < 2**31 else 7
    with np.errstate(all="ignore"):
        if chance.random() < 0.4 or not array.size:
            array[...] = value
        else:
            array.flat[chance.randrange(array.size)] = value
    return array


def _member(path: Path, chance: random.Random) -> bytes:
    """The archive with one member's bytes altered, missing, twice, huge, or under another name."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    name, content = members.pop(chance.randrange(len(members)))
    way = chance.randrange(6)
    if way == 0:
        members.append((name, mutations.spoiled(content, chance)))
    elif way == 1:
        members += [(name, content), (chance.choice(["../x.npy", "x.npy", "x.pkl", "/x"]), content)]
    elif way == 2:
        huge = chance.choice(["(1000000000000,)", "(99999, 99999, 99999)", "(-1,)", "(1.5,)", "()", "((((", "(1,)*9"])
        header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {huge}, }}".ljust(117) + "\n"
        members.append((name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()))
    elif way == 3:
        members.append((name, pickle.dumps(Payload(path.parent / OPENED))))
    elif way == 4:
        members += [(name.removesuffix(".npy"), content)]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", chance.choice([0, 8, 12, 14])) as archive:
        for own, data in members:
            archive.writestr(own, data)
    return made.getvalue()


KIND = Kind("traces", make, run, count=60)
