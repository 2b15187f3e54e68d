"""Weights: safetensors headers, their index, cut and altered data, and things that are no files."""

import json
import random
import struct
from pathlib import Path
from typing import Any

from mlx_dgemma.text.engine import Engine
from tests.fuzz import files, mutations, prompts, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, check_kept, demand, state

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMES = (
    "../small/model.safetensors", "/etc/passwd", "model.safetensors\x00", "./model.safetensors", "a/b.safetensors",
    "model.safetensors", "other.safetensors", "", ".", "..", "model.bin", "é.safetensors", "-.safetensors",
)  # fmt: skip
DTYPES = ("F32", "F16", "BF16", "U32", "U8", "I8", "BOOL", "F64", "F8_E4M3", "U64", "X", "bf16", "")


def make(random: random.Random) -> tuple[int, ...]:
    return mutations.seeds(random, 2)


def run(made: tuple[int, ...], folder: Path) -> bool:
    checkpoint, refusals = small.copy(folder), Refusals()
    for seed in made:
        spoil(checkpoint, random.Random(seed))
    before = state(folder)
    with refusals.allowed():
        engine = Engine.load(checkpoint, verify=made[-1] % 5 == 0 if made else False)
        prompts.check_result(engine.generate(small.REQUEST), 18)
    check_kept(before, state(folder))
    weights = checkpoint / WEIGHTS
    if refusals.none and weights.is_file() and weights.read_bytes() == (small.original() / WEIGHTS).read_bytes():
        demand(engine.generate(small.REQUEST).text == small.text(), "the same weights say something else")
    return refusals.none


def spoil(checkpoint: Path, random: random.Random) -> None:
    """One change of one file."""
    way = random.choice(
        ["entry", "entry", "entry", "entry", "json", "bytes", "length", "data", "index", "index", "odd"]
    )
    weights = checkpoint / WEIGHTS
    if way == "odd":
        files.put(checkpoint / random.choice([WEIGHTS, INDEX, "convert.json"]), files.odd(random))
    elif way == "index":
        (checkpoint / INDEX).unlink(missing_ok=True)
        (checkpoint / INDEX).write_bytes(index(random))
    elif way == "bytes" and weights.is_file():
        weights.write_bytes(mutations.spoiled(weights.read_bytes(), random))
    elif weights.is_file() and len(weights.read_bytes()) > 8:
        length, header, data = read(weights)
        if way == "length":
            length = random.choice([0, 1, length - 1, length + 1, 2**63, 2**64 - 1, len(data), length + len(data)])
        elif way == "data":
            data = random.choice([data[:-1], data + b"x", data[:-100], b"", b"\xff" * len(data), b"\x00" * len(data)])
        elif way == "json":
            header = mutations.edited(parsed(header), (random.randrange(2**32),))
            length = len(header)
        else:
            header = entry_changed(parsed(header), random)
            length = len(header)
        weights.write_bytes(struct.pack("<Q", length) + header + data)


def read(path: Path) -> tuple[int, bytes, bytes]:
    """Length, header and data of a safetensors file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return length, content[8 : 8 + length], content[8 + length :]


def parsed(header: bytes) -> dict[str, Any]:
    """A header's content; empty if an earlier change left none."""
    try:
        content = json.loads(header)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def entry_changed(content: dict[str, Any], random: random.Random) -> bytes:
    """A header in which one tensor's entry is another."""
    if not content:
        return b"{}"
    name = random.choice(list(content))
    entry = content[name] if isinstance(content[name], dict) else {}
    way = random.randrange(9)
    if way == 0:
        entry["dtype"] = random.choice(DTYPES)
    elif way == 1:
        entry["shape"] = random.choice(
            [[], [0], [0, 2**40], [-1, -64], [2**63], entry.get("shape", [1])[::-1], [1] * 80]
        )
    elif way == 2:
        entry["data_offsets"] = random.choice([[0, 0], [5, 1], [0, 2**63], [-8, 8], [0], [1.0, 2.0], "ab", [True, 2]])
    elif way == 3:
        content[random.choice(["x", "", "\x00", "model.decoder.norm.weight", "lm_head.weight", "é"])] = content.pop(
            name
        )
    elif way == 4:
        empty = {"dtype": random.choice(DTYPES), "shape": random.choice([[0], [0, 2**31], [0, 2**62, 2**62]])}
        at = max((e["data_offsets"][1] for e in content.values() if _has_end(e)), default=0)
        content[random.choice(["lm_head.weight", "x"])] = {**empty, "data_offsets": [at, at]}
    elif way == 5:
        content["__metadata__"] = mutations.atom(random)
    elif way == 6:
        content["__metadata__"] = {"format": mutations.atom(random)}
    elif way == 7:
        entry[random.choice(["x", "dtype", "shape"])] = mutations.atom(random)
    else:
        other = random.choice(list(content))
        content[name], content[other] = content[other], content[name]
    text = json.dumps(content).replace(f'"{mutations.DEEP}"', "[" * 100_000).replace(mutations.LONG, "long " * 40_000)
    return (text + random.choice(["", " ", " " * 8, "\n", "\x00"])).encode()


def _has_end(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


def index(random: random.Random) -> bytes:
    """An index, good or not."""
    header = json.loads(read(small.original() / WEIGHTS)[1])
    content = {"metadata": {"total_size": 1}, "weight_map": {n: WEIGHTS for n in header if n != "__metadata__"}}
    if random.random() < 0.5:
        content["weight_map"][random.choice(list(content["weight_map"]))] = random.choice(NAMES)
        return json.dumps(content).encode()
    return mutations.edited(content, mutations.seeds(random, 2))


KIND = Kind("headers", make, run, count=70)
