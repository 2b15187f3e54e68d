"""Images for tests, and what the reference makes of them."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from mlx_dgemma import DGemmaError
from mlx_dgemma.text.images import Picture, read_picture

FORMATS = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "GIF": {}}


def coloured(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image whose every pixel differs from its neighbours, in all channels."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    numbers = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(mode, (width, height), numbers.tobytes())


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    image.save(file := BytesIO(), form, **(options or FORMATS.get(form, {})))
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG by hand, of any header; `rows` each begin with their filter's 0."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def fitting(colour: object, mode: str = "RGB") -> Image.Image:
    """An image of one colour that is not resized at the default budget."""
    return Image.new(mode, (768, 768), colour)


def reference(image: Image.Image, budget: int, patch: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches, (P, 3·patch²), and their column and row, (P, 2), without the padding."""
    processor = Gemma4ImageProcessorPil(max_soft_tokens=budget, patch_size=patch, pooling_kernel_size=pool)
    made = processor(image, return_tensors="np")
    positions = made["image_position_ids"][0]
    is_real = positions[:, 0] >= 0
    assert made["num_soft_tokens_per_image"][0] * pool**2 == is_real.sum()
    return made["pixel_values"][0][is_real], positions[is_real]


def compare(picture: Picture, values: np.ndarray, positions: np.ndarray) -> None:
    patches = picture.patches()
    assert patches.dtype == values.dtype == np.float32 and np.array_equal(patches, values)
    rows, columns = picture.grid
    assert np.array_equal(positions, [(column, row) for row in range(rows) for column in range(columns)])
    assert picture.tokens * picture.pool**2 == rows * columns


def refusal(source: object, **options: int) -> str:
    """What is said of an image: one line that begins with its name."""
    with pytest.raises(DGemmaError) as error:
        read_picture(source, "image 2 of message 3", **options)
    line = str(error.value)
    assert line.startswith("image 2 of message 3") and len(line.splitlines()) == 1 and "0x" not in line
    return line
