"""Converting: a published checkpoint with one fault, and targets that earlier runs left half done."""

import json
import random
import shutil
import struct
from functools import cache
from pathlib import Path

import mlx.core as mx

from convert.__main__ import main
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.engine import Engine
from tests.fuzz import files, headers, mutations, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import check_ended, command, demand, state

RECIPES = (
    (), (), ("-q", "--q-group-size", "32"), ("--recipe", "uniform", "--q-group-size", "32"),
    ("--dtype", "float32"),
)  # fmt: skip
SOURCES = ("published", "published", "gemma4", "quantized")


@cache
def source(kind: str) -> Path:
    """A good source: as published, quantized by us, or a plain Gemma 4."""
    if kind == "published":
        return small.original()
    folder = small.original().parent / kind
    if kind == "quantized":
        options = ("--recipe", "uniform", "--q-group-size", "32")
        demand(command(main, ["--hf-path", small.original(), "--mlx-path", folder, *options]).code == 0, kind)
        return folder
    small.write(folder)
    weights = {}
    for name, array in mx.load(str(folder / headers.WEIGHTS)).items():
        if name.startswith("model.decoder.") and ".self_conditioning." not in name:
            weights[name.replace("model.decoder.", "model.language_model.")] = array
    mx.save_safetensors(str(folder / headers.WEIGHTS), weights, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**small.CONFIG, "model_type": "gemma4"}))
    return folder


def make(random: random.Random) -> list[tuple[str, int]]:
    """Changes, each a name and a seed; the first chooses source and options."""
    made = [("begin", random.randrange(2**32))]
    ways = ["config", "config", "header", "data", "side", "odd", "nothing"]
    made += [(random.choice(ways), random.randrange(2**32)) for _ in range(random.choice([0, 1, 1, 1, 1, 2]))]
    if random.random() < 0.4:
        made.append((random.choice(["record", "half", "target", "old"]), random.randrange(2**32)))
    return made


def smaller(made: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    return [made[:i] + made[i + 1 :] for i in range(1, len(made))]


def run(made: list[tuple[str, int]], folder: Path) -> bool:
    chance = random.Random(made[0][1])
    kind, options = chance.choice(SOURCES), list(chance.choice(RECIPES))
    options = ["--dequantize"] * chance.randrange(2) if kind == "quantized" else options
    origin, target = shutil.copytree(source(kind), folder / "source"), folder / "target"
    for way, seed in made[1:]:
        (leave if way in LEFT else spoil)(folder, way, random.Random(seed))
    before = state(origin)
    asked = ["--hf-path", origin, "--mlx-path", target, *options]
    was = state(folder)
    planned = check_ended(command(main, [*asked, "--dry-run"]))
    demand(state(folder) == was, "a dry run wrote something")
    more = chance.choice([[], ["--resume"], ["--force"], ["--verify"]])
    done = check_ended(command(main, [*asked, *more]))
    demand(state(origin) == before, "the source was changed")
    demand(planned or not done, "what cannot be planned was converted")
    after = {n: s for n, s in state(folder).items() if n.startswith("target/") or n == "target"}
    if done:
        check_target(target, options)
    else:
        kept = {n: s for n, s in was.items() if n.startswith("target/") or n == "target"}
        demand(after == kept, f"a failed conversion left {sorted(after)[:5]} under the target's name")
    left = [p.name for p in folder.iterdir() if p.name.startswith(".") or (done and p.name == "target.partial")]
    demand(not left, f"left behind: {left}")
    return done


def check_target(target: Path, options: list[str]) -> None:
    """It loads, and says what the source says where nothing was rounded."""
    text = answer(target)
    weights = (target / "config.json").read_bytes()
    if not options and b'"quantization"' not in weights and b"untrained" not in (target / "README.md").read_bytes():
        origin = answer(target.parent / "source")
        demand(text == origin, f"the target says {text!r}, the source {origin!r}")


def answer(folder: Path) -> str:
    """What it says; or why it does not, as a configuration may leave no room for a text."""
    engine = Engine.load(folder, verify=folder.name == "target")
    try:
        return engine.generate(small.REQUEST).text
    except DGemmaError as error:
        return str(error)


LEFT = ("record", "half", "target", "old")


def leave(folder: Path, way: str, chance: random.Random) -> None:
    """What an earlier run left."""
    target, partial = folder / "target", folder / "target.partial"
    if way == "target":
        files.put(target, files.odd(chance))
        return
    if way == "old":
        shutil.copytree(source("quantized"), target)
        (target / "convert.json").write_bytes(_record(chance))
        return
    shutil.copytree(source("quantized"), partial)
    if chance.random() < 0.2:
        (partial / "convert.json").unlink()
        files.put(partial / "convert.json", files.odd(chance))
    else:
        (partial / "convert.json").write_bytes(_record(chance))
    if way == "half":
        for file in chance.sample(sorted(partial.iterdir()), 3):
            file.unlink()


def _record(chance: random.Random) -> bytes:
    content = json.loads((source("quantized") / "convert.json").read_text())
    return mutations.edited(content, mutations.seeds(chance, 2))


def spoil(folder: Path, way: str, chance: random.Random) -> None:
    """One fault of the source."""
    origin = folder / "source"
    weights = [file for file in sorted(origin.glob("*.safetensors")) if file.is_file() and file.stat().st_size > 8]
    if way == "config":
        path = origin / "config.json"
        content = headers.parsed(path.read_bytes()) if path.is_file() else {}
        if content:
            path.write_bytes(mutations.edited(content, (chance.randrange(2**32),)))
    elif way == "side":
        name = chance.choice(["generation_config.json", "tokenizer.json", "model.safetensors.index.json", "x.json"])
        (origin / name).unlink(missing_ok=True)
        (origin / name).write_bytes(mutations.edited(small.GENERATION, (chance.randrange(2**32),)))
    elif way == "odd":
        names = ["config.json", "model.safetensors", "x.txt", "generation_config.json", "model.safetensors.index.json"]
        files.put(origin / chance.choice(names), files.odd(chance))
    elif weights and way == "header":
        _, header, data = headers.read(weights[0])
        header = headers.entry_changed(headers.parsed(header), chance)
        weights[0].write_bytes(struct.pack("<Q", len(header)) + header + data)
    elif weights and way == "data":
        length, header, data = headers.read(weights[0])
        at = chance.randrange(len(data))
        broken = chance.choice([b"\xff\xff\xff\xff", b"\x00" * 64, b"\x80\x7f" * 8, b""])
        data = data[:at] + broken + data[at + len(broken) :]
        weights[0].write_bytes(struct.pack("<Q", length) + header + data[: len(data) - (not broken)])


KIND = Kind("conversions", make, run, count=30, smaller=smaller, seconds=60.0)
