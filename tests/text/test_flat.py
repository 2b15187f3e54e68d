"""Three hundred different requests to one engine, looked at while they run: nothing grows from round to round."""

import gc
import itertools
import mmap
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.checkpoint import chat_template
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.model import memory
from mlx_dgemma.text.run import Run
from mlx_dgemma.trace.recorder import Recorder, record
from mlx_dgemma.trace.trace import load_trace

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is open")]
SHORT = GenerationConfig(max_denoising_steps=3, max_new_tokens=64)
TWO = GenerationConfig(max_denoising_steps=3, max_new_tokens=128, confidence_threshold=1e-9)
Rounds = dict[str, list[float]]  # by quantity, the most of each round
# What a quantity may have grown by, from the third round on to the last ones: a share, and an amount.
ALLOWED = {
    "active": (0.02, 64e3), "peak": (0.02, 64e3), "rss": (0.0, 3e6), "threads": (0.0, 0), "files": (0.0, 0),
    "children": (0.0, 0), "blocks": (0.0, 0.7),
}  # fmt: skip


class FailingNoise(SeededNoise):
    def uniform(self, shape):
        raise DGemmaError("the noise ran out")


def prompt(number: int) -> str:
    """Of one of ten lengths, and never the same."""
    return f"upper {'abcdefghij'[number % 10] * (1 + 12 * (number % 10))}{number}"


def trace(engine: Engine, number: int, folder: Path) -> None:
    request = Request(prompt(number), settings=SHORT, seed=number)
    recorder = Recorder(engine, request)
    for _ in record(engine.stream(request), recorder):
        pass
    recorder.trace().save(folder / "run.npz")
    load_trace(folder / "run.npz")


def abandoned(engine: Engine, number: int, folder: Path) -> None:
    next(engine.stream(Request(prompt(number), settings=TWO, seed=number)))


def cancelled(engine: Engine, number: int, folder: Path) -> None:
    stream = engine.stream(Request(prompt(number), settings=TWO, seed=number))
    for _ in range(1 + number % 3):
        next(stream)
    with suppress(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)


def refused(engine: Engine, number: int, folder: Path) -> None:
    for wrong in ("", [10**6], [{"role": "user", "content": number}]):
        with pytest.raises(DGemmaError):
            engine.generate(Request(wrong, settings=SHORT))


def failing(engine: Engine, number: int, folder: Path) -> None:
    noise = FailingNoise(number, engine.model.config.vocab_size)
    with pytest.raises(DGemmaError, match="ran out"):
        engine.generate(Request(prompt(number), settings=SHORT, noise=noise))


def rendered(engine: Engine, number: int, folder: Path) -> None:
    """By another checkpoint's template, in a process of its own; and one that fails there."""
    chat_template.render("{{ text }} {# not ours #}", {"text": prompt(number)})
    with pytest.raises(DGemmaError):
        chat_template.render("{{ raise_exception(text) }}", {"text": prompt(number)})


def asked(**options) -> Callable[[Engine, int, Path], None]:
    def ask(engine: Engine, number: int, folder: Path) -> None:
        request = {"settings": SHORT, "seed": number, **options}
        engine.samples(Request(prompt(number), **request))

    return ask


KINDS = {
    "short": asked(),
    "two canvases": asked(settings=TWO),
    "template": asked(canvas="A{5}B{3}C"),
    "draft": asked(canvas=CanvasPlan(draft="HELLO", noise=0.5)),
    "batch": asked(samples=3),
    "two canvases of a batch": asked(samples=2, settings=TWO),
    "choose": lambda engine, number, _: engine.choose(Request(prompt(number)), "{?}", ["A", "B", f"C{number}"]),
    "score": lambda engine, number, _: engine.score(Request(prompt(number)), "ABC"[: 1 + number % 3]),
    "causal score": lambda engine, number, _: engine.score(Request(prompt(number)), f"A{number}", causal=True),
    "token ids": lambda engine, number, _: engine.generate(Request([2, *range(5, 6 + number % 40)], settings=SHORT)),
    "trace": trace,
    "abandoned": abandoned,
    "cancelled": cancelled,
    "refused": refused,
    "failing": failing,
    "rendered": rendered,
}  # fmt: skip


def now() -> dict[str, float]:
    children = sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "active": mx.get_active_memory(), "peak": mx.get_peak_memory(), "rss": resident,
        "threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd")), "children": children,
    }  # fmt: skip


def drive(
    engine: Engine, folder: Path, monkeypatch, rounds: Iterable[list[str]], plant: Callable[[int], None] | None = None
) -> Rounds:
    """Carries out rounds of requests; the most of each quantity that was seen in each, at every piece of work."""
    most, numbers, current = defaultdict(list), itertools.count(), {}

    def sampled(work):
        def look(arrays):
            work(arrays)
            for name, value in now().items():
                current[name] = max(current.get(name, 0), value)

        return look

    with monkeypatch.context() as patch:
        for name in ("start", "finish"):
            patch.setattr(memory, name, sampled(getattr(memory, name)))
        for kinds in rounds:
            current.clear()
            mx.reset_peak_memory()
            for kind in kinds:
                number = next(numbers)
                KINDS[kind](engine, number, folder)
                if plant is not None:
                    plant(number)
            gc.collect()
            for name, value in {**now(), **current, "blocks": sys.getallocatedblocks()}.items():
                most[name].append(value)
    return most


def grown(most: Rounds, requests: int) -> list[str]:
    """The quantities that grew: the later rounds have more than the earlier ones, the first two left aside."""
    found = []
    for name, values in most.items():
        half = (len(values) + 2) // 2
        before, after = max(values[2:half]), min(values[-2:]) if name in ("rss", "blocks") else max(values[half:])
        share, amount = ALLOWED[name]
        if name == "blocks":  # of Python's memory, per request
            amount *= requests * (len(values) - half) / len(values)
        if after > before * (1 + share) + amount:
            found.append(f"{name}: {[round(value) for value in values]}")
    return found


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def test_nothing_grows_over_three_hundred_requests(engine, tmp_path, monkeypatch):
    order = list(KINDS) * 2
    most = drive(engine, tmp_path, monkeypatch, [order[:30]] * 10)
    assert grown(most, 300) == []
    assert len(most) == len(ALLOWED) and all(len(values) == 10 for values in most.values())


LEAKS = {
    "a history of canvases": ("blocks", lambda kept, number: kept.extend(mx.zeros((1, 64)) for _ in range(3))),
    "a dictionary that grows": ("blocks", lambda kept, number: kept.append(str(number) * 40)),
    "an open file": ("files", lambda kept, number: kept.append(open(os.devnull))),  # noqa: SIM115
    "a thread": ("threads", lambda kept, number: kept.append(_thread())),
    "a process": ("children", lambda kept, number: kept.append(subprocess.Popen(["sleep", "60"]))),
    "large buffers": ("rss", lambda kept, number: kept.append(_buffer())),
}
END = threading.Event()


def _buffer() -> mmap.mmap:
    """Memory that the process did not have before, whatever it has freed."""
    buffer = mmap.mmap(-1, 1 << 19)
    buffer.write(bytes(1 << 19))
    return buffer


def _thread() -> None:
    threading.Thread(target=END.wait, daemon=True).start()


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen(engine, tmp_path, monkeypatch, leak):
    """Each planted, and told by its name."""
    (name, keep), kept = LEAKS[leak], []
    END.clear()
    try:
        most = drive(engine, tmp_path, monkeypatch, [["refused"] * 10] * 8, lambda number: keep(kept, number))
        assert [told.partition(":")[0] for told in grown(most, 80)].count(name) == 1
    finally:
        END.set()
        for one in kept:
            if isinstance(one, subprocess.Popen):
                one.kill()
                one.wait()


def test_a_cache_that_is_kept_is_seen(engine, tmp_path, monkeypatch):
    kept, encode = [], Run.encode

    def keeping(run):
        kept.append((yield from encode(run)))
        return kept[-1]

    monkeypatch.setattr(Run, "encode", keeping)
    assert "active" in "".join(grown(drive(engine, tmp_path, monkeypatch, [["abandoned"] * 4] * 8), 32))


def test_work_that_takes_more_from_request_to_request_is_seen(engine, tmp_path, monkeypatch):
    """Although all of it is given back."""
    kept, finish = [], memory.finish

    def more(arrays):
        kept.append(None)
        finish([mx.zeros((len(kept), 250_000)), *arrays])

    monkeypatch.setattr(memory, "finish", more)
    assert "peak" in "".join(grown(drive(engine, tmp_path, monkeypatch, [["causal score"] * 4] * 8), 32))


def test_without_a_leak_nothing_is_seen(engine, tmp_path, monkeypatch):
    assert grown(drive(engine, tmp_path, monkeypatch, [["refused"] * 10] * 8), 80) == []
