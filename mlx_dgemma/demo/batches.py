"""Batches of the embedded checkpoint's training: whole conversations, and one canvas of each answer."""

import random
import string
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import jinja2
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mlx_dgemma.demo.vocabulary import (
    BEGIN_IMAGE,
    BOS,
    END_IMAGE,
    END_OF_TURN,
    IMAGE,
    PAD,
    RESPONSE,
    TEMPLATE,
    build_tokenizer,
)
from mlx_dgemma.tasks import TASKS, Example, examples
from mlx_dgemma.tasks.readings import draw_readings
from mlx_dgemma.tasks.talks import Talk, bare, draw_talks, reading, thoughtful
from mlx_dgemma.text.images import Picture, read_picture

CANVAS = 64
TOKENIZER = build_tokenizer()
LONG, TALKS, READINGS = 0.12, 0.25, 0.13  # shares of the batches: answers of several canvases, talks, pictures
PATCH, POOLED, BUDGET = 4, 3, 70  # of pictures: pixels, patches along a token, and tokens at most
COPIED = 40  # characters, at least, that `copies` takes pieces from
PROMPT = 0.1  # a prompt is mostly random letters, of which there is little to learn
POOL = 2  # batches that are drawn together and sorted by length


@dataclass(frozen=True)
class Batch:
    """Rows of ids, right-padded.

    Attributes:
        ids: (B, T); prompt, answer, and fill up to whole canvases.
        read: (B, T); weights in the causal loss: PROMPT of a prompt's tokens, 1 of an answer's and of the one that ends
            it, 0 behind it and of pictures.
        start: (B,); where the canvas begins.
        clean: (B, C); the canvas.
        pictures: one a row, what the eyes take of them; None of rows without.
    """

    ids: Tensor
    read: Tensor
    start: Tensor
    clean: Tensor
    pictures: "Pictures | None" = None


@dataclass(frozen=True)
class Pictures:
    """A picture for each row, right-padded.

    Attributes:
        patches: (B, P, 3·patch²), in [0, 1].
        places: (B, P, 2); column and row of each patch, −1 for padding.
    """

    patches: Tensor
    places: Tensor


def render(talk: Talk) -> str:
    """The prompt as the template writes it, up to where the model goes on."""
    return _template().render(
        messages=talk.messages,
        tools=talk.tools or None,
        enable_thinking=talk.thinking,
        add_generation_prompt=True,
        bos_token="<bos>",
    )


@cache
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def encode_prompt(prompt: str) -> list[int]:
    """A user's text as the template writes it."""
    return encode(render(Talk(({"role": "user", "content": prompt},), "")))


def encode_answer(talk: Talk) -> list[int]:
    """A turn and the token that ends it."""
    return [*encode(talk.answer), RESPONSE if talk.call else END_OF_TURN]


def left_pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T) each. RoPE is relative, so a shifted row is the same row."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask.bool()


def collate(talks: list[Talk], rng: random.Random) -> Batch:
    """One batch: of every answer a random one of its canvases. All talks show one picture, or none does."""
    shown = [_picture(talk) for talk in talks]
    rows, lengths, ends, starts = [], [], [], []
    for talk, picture in zip(talks, shown, strict=True):
        prompt, answer = _prompt(talk, picture), encode_answer(talk)
        fill = [PAD] * (-len(answer) % CANVAS)
        starts.append(len(prompt) + CANVAS * rng.randrange((len(answer) + CANVAS - 1) // CANVAS))
        rows.append([*prompt, *answer, *fill])
        lengths.append(len(prompt))
        ends.append(len(prompt) + len(answer))
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    clean = torch.tensor([row[start : start + CANVAS] for row, start in zip(rows, starts, strict=True)])
    length = max(ends)
    position = torch.arange(length)
    weight = torch.where(position < torch.tensor(lengths)[:, None], PROMPT, 1.0)
    read = weight * (position < torch.tensor(ends)[:, None]) * (ids[:, :length] != IMAGE)
    pictures = _pictures([own for own in shown if own is not None])
    return Batch(ids[:, :length], read, torch.tensor(starts), clean, pictures)


def _picture(talk: Talk) -> Picture | None:
    """What a talk shows."""
    parts = talk.messages[-1]["content"]
    images = [part["image"] for part in parts if part["type"] == "image"] if isinstance(parts, list) else []
    return read_picture(images[0], "a picture", patch=PATCH, pool=POOLED, budget=BUDGET) if images else None


def _prompt(talk: Talk, picture: Picture | None) -> list[int]:
    """A prompt's ids, in which a picture has as many positions as tokens."""
    ids = encode(render(talk))
    if picture is None:
        return ids
    at = ids.index(IMAGE)
    return [*ids[:at], BEGIN_IMAGE, *[IMAGE] * picture.tokens, END_IMAGE, *ids[at + 1 :]]


def _pictures(pictures: list[Picture]) -> Pictures | None:
    if not pictures:
        return None
    rows = [torch.from_numpy(own.patches()) for own in pictures]
    places = [torch.cartesian_prod(*map(torch.arange, own.grid)).flip(-1) for own in pictures]  # row-major
    padded = pad_sequence(rows, batch_first=True)
    return Pictures(padded, pad_sequence(places, batch_first=True, padding_value=-1))


def copies(rng: random.Random, size: int) -> Batch:
    """Random characters and a canvas of pieces of them, from one whole piece to short ones with a stop between.

    Nothing can be known of such a canvas but where its pieces stand in the text: what all tasks that repeat words need,
    and learn slowly from few words. The causal loss covers the canvas.
    """
    letters = encode(string.ascii_lowercase + string.digits + " ")
    stops = encode('":,{}. ')
    rows, length = [], rng.randint(COPIED, 2 * COPIED)
    for _ in range(size):
        text = rng.choices(letters, k=length)
        longest, canvas = rng.choice((6, 12, CANVAS)), list[int]()
        while len(canvas) < CANVAS:
            n = rng.randint(2, longest) if longest < CANVAS else CANVAS
            begin = rng.randrange(length - min(n, length) + 1)
            canvas += [*text[begin : begin + n], rng.choice(stops)]
        rows.append([BOS, *text, *canvas[:CANVAS]])
    ids, start = torch.tensor(rows), torch.full((size,), length + 1)
    return Batch(ids, (torch.arange(ids.shape[1]) > length).expand(ids.shape) * 1.0, start, ids[:, length + 1 :])


def batches(
    seed: int, size: int, focus: Mapping[str, float] | None = None, copied: float = 0.0
) -> Iterator[Batch]:  # fmt: skip
    """An endless seeded stream: bare tasks in one canvas, answers of several (half as many), talks (half), pictures
    (three quarters), so that a batch of each takes about as long.

    `focus` holds factors on the shares of tasks by name; `copied` is the share of batches of `copies`, before theirs.
    """
    rng, chance = random.Random(f"{seed}/batches"), random.Random(f"{seed}/kinds")
    weights = {name: task.weight * (focus or {}).get(name, 1) for name, task in TASKS.items()}
    tasks = {name: replace(task, weight=weights[name]) for name, task in TASKS.items()}
    anything, counts = examples(seed, held_out=False, tasks=tasks), examples(seed, held_out=False, task="count")
    short = _batched((_short(example, chance) for example in anything if len(example.answer) < CANVAS), size, rng)
    long = _batched((bare(example) for example in counts if len(example.answer) >= CANVAS), size // 2, rng)
    talks = _batched(draw_talks(seed, held_out=False), size // 2, rng)
    shown = _batched((reading(*own) for own in draw_readings(seed, held_out=False)), size * 3 // 4, rng)
    while True:
        if chance.random() < copied:
            yield copies(rng, size)
            continue
        kind = rng.random()
        ends = (LONG, LONG + TALKS, LONG + TALKS + READINGS)
        yield next((long, talks, shown, short)[bisect(ends, kind)])


def _batched(talks: Iterator[Talk], size: int, rng: random.Random) -> Iterator[Batch]:
    """Batches of talks of similar length, so that little is padding."""
    while True:
        pool = sorted((next(talks) for _ in range(POOL * size)), key=lambda t: len(render(t)) + len(t.answer))
        drawn = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(drawn)
        yield from (collate(rows, rng) for rows in drawn)


def _short(example: Example, chance: random.Random) -> Talk:
    """A bare task; with thinking on for half of those that it helps, and a few of the others."""
    thinks = chance.random() < (0.5 if example.task.think else 0.03)
    return thoughtful(example) if thinks else bare(example)
