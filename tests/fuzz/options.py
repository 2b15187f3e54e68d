"""Command lines: every option of every command with any text, and paths to things that are no files.

What takes long because it was asked for (a million steps, a hundred samples) is not tried: numbers are small, or so
large that nobody could mean them.
"""

import os
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from convert.__main__ import main as convert
from mlx_dgemma.bench.__main__ import main as bench
from mlx_dgemma.generate import main as generate
from mlx_dgemma.report.__main__ import main as report
from mlx_dgemma.sweep.__main__ import main as sweep
from tests.fuzz import files, small, texts, traces
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import check_ended, check_kept, command, demand, state

MAIN: dict[str, Callable[[list[str]], int]] = {
    "generate": generate, "sweep": sweep, "report": report, "bench": bench, "convert": convert,
}  # fmt: skip
HERE = "@/"  # stands for the folder of an input, as a seed makes the same input everywhere
PATHS = (
    "small", "x", "no/x", "run.npz", "pairs.jsonl", "torn.csv", "folder", "x.png", "x" * 300, "x" * 5000,
    "pairs.jsonl/x",
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "3", "-1", "0.5", "1.5", "-0", "-0.0", "1e-9", "1e999", "-1e999", "nan", "inf", "", " ",
    "1_0", "٣",
)  # fmt: skip
HUGE = ("9" * 20, "9" * 400, "9" * 5000, "0x10", "1e308", "4294967296", "9223372036854775808")
STEPS = ("--max-denoising-steps", "2", "--max-tokens", "16")
OUTPUTS = ("--trace", "--output", "--plot", "-o", "--png", "--svg", "--gif", "--mlx-path")
BASE = {
    "generate": ["-m", HERE + "small", "-p", "sort: d b a c", *STEPS],
    "sweep": ["-m", HERE + "small", "--tasks", "roman", "--n", "1", "--max-tokens", "16", "--output", HERE + "o.csv"],
    "report": [HERE + "run.npz"],
    "bench": ["-m", HERE + "small", "--prompt-length", "3", "--steps", "3", "--repeat", "1"],
    "convert": ["--hf-path", HERE + "small", "--mlx-path", HERE + "target"],
}
NUMBERED = {
    "generate": [
        "--seed", "--max-tokens", "--max-denoising-steps", "--entropy-bound", "--t-min", "--t-max", "--noise",
        "--confidence-threshold", "--stability-threshold", "--soft-embedding-cutoff", "--num-samples", "--watch-delay",
    ],
    "sweep": ["--n", "--seed", "--max-tokens"],
    "report": ["--speed", "--columns"],
    "bench": ["--prompt-length", "--seed"],
    "convert": ["--q-bits", "--q-group-size"],
}  # fmt: skip
PATHED = {
    "generate": ["-m", "--model", "--trace"],
    "sweep": ["--data", "--output", "--plot", "-m"],
    "report": ["-o", "--png", "--svg", "--gif", ""],
    "bench": ["-m"],
    "convert": ["--hf-path", "--mlx-path"],
}
TEXTED = {
    "generate": ["-p", "--system", "--template", "--init", "--choose", "--token-choice", "--dtype", "", "--temp"],
    "sweep": ["--set", "--tasks", "--dtype"],
    "report": [""],
    "bench": ["--dtype"],
    "convert": ["--recipe", "--q-mode", "--override", "--dtype", "--revision"],
}
FLAGS = {
    "generate": ["--json", "-q", "--watch", "--no-chat-template", "--no-wire", "--version", "--help", "-p=-"],
    "sweep": ["--resume", "--force", "--version"],
    "report": ["--play", "--svg", "--gif", "--png", "--help"],
    "bench": ["--check", "--json"],
    "convert": ["-q", "-d", "--dry-run", "--verbose", "--resume", "--force", "--verify", "--recipe=uniform"],
}
WORDS = (
    "max_denoising_steps=1,2", "entropy_bound=nan", "t_min=1e999", "acceptance=no_such:Rule(1)",
    "acceptance=.x:Y", "=", "acceptance=:", "token_choice=argmax", "token_choice=x:y(", "stopping=a:b(*c)",
    "eos_token_id=1", "embed_tokens=6:64", "a{99999999999}=4", "(" * 3000 + "=4", ".*=8:64", ".*=4:32:mxfp4",
    "x=16", "(a=4", "=4", ".*=4:", ".*=4:64:affine:x", "categorical", "argmax", "bfloat16", "float32", "affine",
    "small", "nvfp4", "roman", "roman,roman", "--", "-", "a,b", "acceptance=x\x00y:Z", "stopping=os.path:join",
    "acceptance=tests.fuzz.texts:MARKERS", "max_new_tokens=1,٣", "{?}",
)  # fmt: skip


def make(random: random.Random) -> list[str]:
    """A command and its options."""
    name = random.choice(["generate"] * 4 + ["sweep"] * 3 + ["report"] * 2 + ["convert"] * 3 + ["bench"])
    made = [name, random.choice([*files.WAYS, "good"])]
    for _ in range(random.choice([1, 1, 1, 2, 2, 3])):
        kind = random.choice([NUMBERED, PATHED, PATHED, TEXTED, FLAGS])
        option = random.choice(kind[name])
        if kind is FLAGS:
            made.append(option)
            continue
        value = random.choice(NUMBERS + HUGE) if kind is NUMBERED or random.random() < 0.1 else ""
        if kind is PATHED:
            value = random.choice([HERE, HERE, "", "~nobody/"]) + random.choice([*PATHS, "odd", "odd", "odd"])
        elif kind is TEXTED and not value:
            value = random.choice([random.choice(WORDS), random.choice(WORDS), texts.text(random, 20_000)])
        if option == "--max-denoising-steps" and value in HUGE:
            value = "3"  # they would be made
        if random.random() < 0.03:
            value += random.choice(["\x00", "\n", "\x1b[2J", "\ud800"])
        made += [option, value] if option else [value]
    return made


def run(made: list[str], folder: Path) -> bool:
    name, way, *options = made if len(made) > 1 else [*made, "good"][:2]
    base = BASE.get(name, [])
    prepare(folder, way)
    given = [*base, *options] if name != "report" or not options else [*options, *base]
    arguments = [option.replace(HERE, f"{folder}/") for option in given]
    arguments = [a if not a.startswith("/") or len(a) < 6000 else a[:6000] for a in arguments]
    before, here = state(folder), os.getcwd()
    os.chdir(folder / "folder")  # where a relative path leads
    try:
        ended = command(MAIN.get(name, generate), arguments, b"sort: a\x00 \xff b\n", terminal="--watch" in options)
    finally:
        os.chdir(here)
    done, after = check_ended(ended), state(folder)
    written = [value.removeprefix(HERE) for option, value in pairwise(options) if option in OUTPUTS]
    check_kept(before, after, [*written, *(f"{name}.run.json" for name in written)] if done else ())
    theirs = ("o.csv", "target", "folder/", "x", "odd", "torn.csv")  # what a command may leave when it fails later
    new = [n for n in after if n not in before and not n.startswith(theirs)]
    demand(done or not new, f"written and failed: {new}")
    return done


def prepare(folder: Path, way: str) -> None:
    """What the paths lead to."""
    small.copy(folder)
    traces.recorded()
    (folder / "run.npz").write_bytes((small.original().parent / "run.npz").read_bytes())
    (folder / "pairs.jsonl").write_text('{"prompt": "sort: b a", "answer": "a b"}\n')
    (folder / "torn.csv").write_text("a,b\n1,")
    (folder / "folder").mkdir()
    if way != "good":
        files.put(folder / "odd", way)


KIND = Kind("options", make, run, count=60)
