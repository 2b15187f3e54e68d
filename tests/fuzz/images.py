"""Images of every supported form, altered: a picture within its budget, or one line."""

import random
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from mlx_dgemma.text.images import BUDGETS, read_picture
from tests.fuzz import mutations
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, demand

WAYS = (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True}))
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "GIF": ("L", "P"), "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
}  # fmt: skip
Made = tuple[int, ...]


@cache
def originals() -> tuple[bytes, ...]:
    """Small files with everything beside their pixels that is read: orientation, transparency, further frames."""
    exif = Image.Exif()
    exif[0x0112] = 6
    made = []
    for kind, options in (*WAYS, ("GIF", {}), ("PNG", {"save_all": True}), ("WEBP", {"save_all": True})):
        for mode in MODES[kind]:
            image = Image.linear_gradient("L").resize((40, 24)).convert("L" if mode == "I;16" else mode).convert(mode)
            clear = {"transparency": 3} if kind in ("PNG", "GIF") and mode in "LP" else {}
            others = {"append_images": [image.transpose(Image.Transpose.ROTATE_180)]} if "save_all" in options else {}
            image.save(file := BytesIO(), kind, exif=exif, **clear, **others, **options)
            made.append(file.getvalue())
    return tuple(made)


def make(random: random.Random) -> Made:
    return mutations.seeds(random)


def run(made: Made, folder: Path) -> bool:
    chance = random.Random(made[0])
    content = chance.choice(originals())
    for seed in made:
        content = altered(content, random.Random(seed))
    (folder / "image").write_bytes(content)
    budget, refusals = chance.choice(BUDGETS), Refusals()
    with refusals.allowed():
        picture = read_picture(folder / "image", "--image image", budget=budget)
        rows, columns = picture.grid
        demand(0 < picture.tokens <= budget and rows % 3 == columns % 3 == 0, f"{picture.grid} at {budget}")
        demand(picture.patches().shape == (rows * columns, 768), f"patches {picture.patches().shape}")
    return refusals.none


def altered(content: bytes, chance: random.Random) -> bytes:
    """Bytes that are spoiled or cut; of a PNG mostly a chunk's, with the right sum, or it would not be looked at."""
    if not content.startswith(b"\x89PNG") or chance.random() < 0.2:
        return mutations.spoiled(content, chance)
    chunks, at = [], 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return content
    number = chance.randrange(len(chunks))
    name, data = chunks[number]
    chunks[number] = name, mutations.spoiled(data, chance)
    if chance.random() < 0.1:
        chunks.insert(chance.randrange(len(chunks)), chunks[number])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


KIND = Kind("images", make, run, count=150)
