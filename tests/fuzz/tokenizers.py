"""Tokenizer files beside a good checkpoint: tokenizer.json, tokenizer_config.json, a sentencepiece model."""

import json
import random
import tempfile
from functools import cache
from pathlib import Path

from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.request import CanvasPlan, Request
from tests.fuzz import files, mutations, small
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, check_kept, demand, state

NAMES = ("tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
MAPS = ("tokenizer_config.json", "special_tokens_map.json")


@cache
def pieces() -> bytes:
    """A small sentencepiece model."""
    import sentencepiece

    words = ["sort: d b a c user model system hello", "a canvas is refined until it is confident"]
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 4), model_prefix=f"{folder}/m", model_type="bpe", vocab_size=60,
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
            user_defined_symbols=["<turn|>"], minloglevel=2, byte_fallback=False, hard_vocab_limit=False,
        )  # fmt: skip
        return Path(folder, "m.model").read_bytes()


def make(random: random.Random) -> tuple[str, tuple[int, ...]]:
    """Which file, and what becomes of it."""
    return random.choice(NAMES), mutations.seeds(random)


def smaller(made: tuple[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    name, changes = made
    return [(name, changes[:i] + changes[i + 1 :]) for i in range(len(changes))] if len(changes) > 1 else []


def run(made: tuple[str, tuple[int, ...]], folder: Path) -> bool:
    name, changes = made
    checkpoint, refusals, chance = small.copy(folder), Refusals(), random.Random(changes[0])
    spoil(checkpoint, name, changes, chance)
    before = state(folder)
    with refusals.allowed():
        engine = Engine.load(checkpoint)
        for request in (
            Request("sort: d b a c", seed=3), Request("a b", chat_template=False, samples=2),
            Request("hello", canvas=CanvasPlan("a{3}b", "c")),
        ):  # fmt: skip
            with refusals.allowed():
                answer(engine, request)
    check_kept(before, state(folder))
    return refusals.none


def answer(engine: Engine, request: Request) -> None:
    """Writes, chooses and scores with it."""
    if request.samples > 1:
        engine.samples(request)
        return
    result = engine.generate(request)
    demand(isinstance(result.text, str), f"the text is {result.text!r}")
    if not request.canvas and engine.tokenizer is not None:
        engine.choose(request, "a {?}", ["b", "c d"])
        engine.score(request, "a b")


def spoil(checkpoint: Path, name: str, changes: tuple[int, ...], chance: random.Random) -> None:
    """Changes that file."""
    path = checkpoint / name
    if chance.random() < 0.07:
        files.put(path, files.odd(chance))
    elif name == "tokenizer.model":
        (checkpoint / "tokenizer.json").unlink()
        data = pieces()
        for seed in changes if chance.random() < 0.9 else ():
            data = mutations.spoiled(data, random.Random(seed))
        path.write_bytes(data)
    elif name == "tokenizer_config.json":
        content = json.loads((EMBEDDED / name).read_text())
        content["extra_special_tokens"] = chance.choice([["<a>"], {"x_token": "<b>"}, []])
        content["chat_template"] = chance.choice(["{{ messages }}", [{"name": "default", "template": "a"}]])
        if chance.random() < 0.5:
            (checkpoint / "chat_template.jinja").unlink()
        (checkpoint / chance.choice(MAPS)).write_bytes(mutations.edited(content, changes))
    else:
        path.write_bytes(mutations.edited(json.loads((EMBEDDED / name).read_text()), changes))


KIND = Kind("tokenizers", make, run, count=50, smaller=smaller)
