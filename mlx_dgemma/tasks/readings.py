"""Pictures of short words and numbers, and what they say: lessons for the eyes.

Seeded as the other tasks are; a text whose picture is held out is never shown in training, whatever its size and
colours. Drawn by Pillow in its own font, so that the same pictures can be made anywhere.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlx_dgemma.tasks.words import draw_digits, draw_letters

if TYPE_CHECKING:
    from PIL import Image

CONTRAST = 90  # between the brightness of ink and ground, of 255
PROMPT = "read"


def draw_readings(seed: int, *, held_out: bool) -> Iterator[tuple[Image.Image, str]]:
    """An endless seeded stream of pictures and their texts."""
    rng = random.Random(f"{seed}/{held_out}/readings")
    while True:
        text = draw_digits(rng, 1, 4) if rng.random() < 0.5 else draw_letters(rng, 1, 6)
        if is_held_out(text) == held_out:
            yield draw_picture(text, rng), text


def is_held_out(text: str) -> bool:
    """A fixed twentieth of all texts, but for those of one or two characters, of which there are too few."""
    return len(text) > 2 and zlib.crc32(f"{PROMPT} {text}".encode()) % 20 == 0


def draw_picture(text: str, rng: random.Random) -> Image.Image:
    """A text in some size, place, ink and ground, with some noise."""
    import numpy as np  # late: the other tasks need neither
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(rng.randint(14, 30))
    left, top, right, bottom = font.getbbox(text)
    x, y = rng.randint(2, 16), rng.randint(2, 12)
    size = round(right - left) + x + rng.randint(2, 16), round(bottom - top) + y + rng.randint(2, 12)
    ink, ground = _colours(rng)
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).text((x - left, y - top), text, ink, font)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 16), (size[1], size[0], 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _colours(rng: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ink and ground that can be told apart."""
    while True:
        ink, ground = ((rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(2))
        if abs(_brightness(ink) - _brightness(ground)) >= CONTRAST:
            return ink, ground


def _brightness(colour: tuple[int, int, int]) -> float:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
