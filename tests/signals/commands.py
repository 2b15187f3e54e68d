"""The commands, how they are called here, and what must hold of their files whenever they end."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_dgemma.checkpoint.headers import read_headers
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.request import Request
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import load_trace
from tests.signals.run import End, run

# Training evaluates with the reference, which takes minutes of a run of three steps.
TRAIN = """
import sys
from mlx_dgemma.terminal import signals
signals.begin()
from mlx_dgemma.demo import train
real = train.run
def run(args):
    from mlx_dgemma.demo import training
    training.quick_scores = lambda model, n: "not looked at"
    return real(args)
train.run = run
sys.exit(train.main())
"""
COUNT = ("count 18 to 50", "--max-tokens", "128")
SWEEP = ("--tasks", "roman", "upper", "--n", "2", "--set", "entropy_bound=0.1,0.2", "--output", "s.csv", "--resume")
OLD = b"what stood here before"
Whole = Callable[[Path, bytes], bool]  # a file is whole, given what an undisturbed run wrote there


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        words: what python gets.
        files: what it writes, by name, and how to see that a file is whole; all else is left from an interruption.
        on_terminal: whether it gets one.
        out_is_whole: whether stdout has all or nothing.
        share: how many times it gets each signal, where nobody asks for more.
        follow_up: what must hold afterwards, given the place and the files of an undisturbed run.
    """

    words: Sequence[str]
    files: dict[str, Whole] = field(default_factory=dict)
    on_terminal: bool = False
    out_is_whole: bool = False
    share: int = 2
    follow_up: Callable[["Command", Path, dict[str, bytes]], None] | None = None

    @property
    def line(self) -> list[str]:
        return [sys.executable, *self.words]


def same(path: Path, expected: bytes) -> bool:
    return path.read_bytes() == expected


def is_trace(path: Path, expected: bytes) -> bool:
    return len(load_trace(path).step) > 0


def anything(path: Path, expected: bytes) -> bool:
    """What `follow_up` looks at."""
    return True


def rows(content: bytes) -> list[list[str]]:
    """A sweep's, without the seconds, its last column but one."""
    return [[*row[:-2], row[-1]] for row in csv.reader(content.decode().splitlines())]


def resumes(command: Command, place: Path, undisturbed: dict[str, bytes]) -> None:
    """The same command goes on, to the same rows."""
    end = run(command.line, place)
    assert end.code == 0, end.err
    assert rows((place / "s.csv").read_bytes()) == rows(undisturbed["s.csv"])


def answers_the_rest(command: Command, place: Path, undisturbed: dict[str, bytes]) -> None:
    """The same command goes on, to the same answers, whatever their order."""
    end = run(command.line, place)
    assert end.code == 0, end.err
    assert texts((place / "a.jsonl").read_bytes()) == texts(undisturbed["a.jsonl"])


def texts(content: bytes) -> dict[int, str]:
    """What was answered to each line; each once."""
    answers = [json.loads(line) for line in content.splitlines()]
    assert len({answer["line"] for answer in answers}) == len(answers)
    return {answer["line"]: answer["text"] for answer in answers}


def has_checkpoint(command: Command, place: Path, undisturbed: dict[str, bytes]) -> None:
    """A whole one, or none."""
    names = {str(path.relative_to(place)) for path in (place / "trained").rglob("*")}
    assert names in (set(), {name for name in undisturbed if name.startswith("trained/")})
    if names:
        read_headers(place / "trained")


def converts(command: Command, place: Path, undisturbed: dict[str, bytes]) -> None:
    """Whole under its name, or not there; and resumed it becomes so."""
    end = run([*command.line, "--resume"], place)
    assert end.code == 0, end.err
    assert {path.name for path in place.iterdir()} == {"converted", "tmp"}
    for name, content in undisturbed.items():
        assert (place / name).read_bytes() == content


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", name, *arguments)


def generate(*arguments: str) -> tuple[str, ...]:
    return module("mlx_dgemma.generate", *arguments)


PAGE = dict.fromkeys(("p.html", "p.svg", "p.gif", "p-heatmap.png", "p-curves.png"), same)
COMMANDS = {
    "generate": Command(generate(*COUNT)),
    "package": Command(module("mlx_dgemma", *COUNT, "--quiet")),
    "json": Command(generate(*COUNT, "--json", "--quiet"), out_is_whole=True),
    "trace": Command(generate(*COUNT, "--trace", "run.npz"), {"run.npz": is_trace}),
    "samples": Command(generate(*COUNT, "--num-samples", "3"), out_is_whole=True),
    "choose": Command(generate("roman 4", "--choose", "IV,VI,XX", "--quiet"), out_is_whole=True),
    "template": Command(generate(*COUNT, "--model", "../templated", "--quiet")),
    "prompts": Command(
        generate("--prompts", "../prompts.jsonl", "--output", "a.jsonl", "--resume", "--max-batch", "2"),
        {"a.jsonl": anything}, follow_up=answers_the_rest,
    ),
    "watch": Command(generate(*COUNT, "--watch", "--watch-delay", "0.05"), on_terminal=True),
    "bench": Command(module("mlx_dgemma.bench", "--steps", "3", "--repeat", "1", "--json"), out_is_whole=True, share=1),
    "check": Command(module("mlx_dgemma.bench", "--check"), out_is_whole=True),
    "roofline": Command(module("mlx_dgemma.roofline")),
    "sweep": Command(
        module("mlx_dgemma.sweep", *SWEEP, "--plot", "s.png"),
        {"s.csv": anything, "s.csv.run.json": same, "s.png": same},
        share=1,
        follow_up=resumes,
    ),
    "report": Command(
        module("mlx_dgemma.report", "../run.npz", "-o", "p.html", "--png", "--svg", "--gif"), PAGE
    ),
    "play": Command(module("mlx_dgemma.report", "../run.npz", "--play", "--speed", "0.5"), on_terminal=True),
    "evaluate": Command(module("mlx_dgemma.demo.evaluate", "--n", "2", "--tasks", "roman", "upper", "count"), share=1),
    "train": Command(
        ("-c", TRAIN, "--output", "trained", "--steps", "2", "--batch-size", "2", "--save-every", "0"),
        {"trained": anything}, share=1, follow_up=has_checkpoint,
    ),
    "convert": Command(
        module("convert", "--hf-path", str(EMBEDDED), "--mlx-path", "converted", "-q"),
        {"converted": anything, "converted.partial": anything}, share=1, follow_up=converts,
    ),
}  # fmt: skip


def furnish(parent: Path) -> None:
    """What commands read: a checkpoint whose template is not ours, so that a worker renders it; and a recorded run."""
    shutil.copytree(EMBEDDED, parent / "templated")
    template = parent / "templated" / "chat_template.jinja"
    template.write_text("{# another #}" + template.read_text(encoding="utf-8"), encoding="utf-8")
    (parent / "prompts.jsonl").write_text("".join(f'"roman {n}"\n' for n in range(1, 10)))
    engine, request = Engine.load(), Request(COUNT[0])
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    recorder.trace().save(parent / "run.npz")


def cursor_is_shown(shown: str) -> bool:
    """On a terminal that was sent this; and its alternate screen was left."""
    states = dict(re.findall(r"\x1b\[\?(25|1049)([hl])", shown))  # the last of each counts
    return states.get("25") != "l" and states.get("1049") != "h"


def is_whole_output(command: Command, end: End, undisturbed: str) -> bool:
    """Whether stdout has nothing, or all of it (whose figures may differ)."""
    if not command.out_is_whole or not end.out:
        return True
    if "--json" in command.words:
        json.loads(end.out)
        return True
    return len(end.out.splitlines()) == len(undisturbed.splitlines())
