"""Images as the vision tower takes them: resized to whole cells of patches, within a budget of soft tokens.

    a file, bytes, or an image of Pillow's ──▶ RGB, upright, on white ──▶ resized ──▶ `Picture` ──▶ patches

A cell of `pool` × `pool` patches of `patch` × `patch` pixels, as published 48 × 48, becomes one soft token.
Size, resampling and numbers are those of transformers' `Gemma4ImageProcessorPil`, bit for bit.
"""

import base64
import binascii
import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote_to_bytes

import numpy as np

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import open_file
from mlx_dgemma.text.pixels import KNOWN, decoded, flattened

if TYPE_CHECKING:
    from PIL import Image

BUDGETS = (70, 140, 280, 560, 1120)  # soft tokens of an image, at most: those that the model was trained with
MAX_BYTES = 32 << 20  # of an image's file
TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif")  # of data: URLs
Source: TypeAlias = "str | Path | bytes | Image.Image"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as the tower takes it.

    Attributes:
        width: of the image, upright, in pixels, before the resize.
        height: likewise.
        pixels: (h, w, 3) uint8, after the resize; both sides are multiples of patch · pool.
        patch: pixels along a patch.
        pool: patches along a cell, which becomes a soft token.
        budget: soft tokens at most, one of BUDGETS.
        key: names these pixels at this budget among the ids of a prompt: below zero, as no token's id is.
    """

    width: int
    height: int
    pixels: np.ndarray = field(repr=False)
    patch: int
    pool: int
    budget: int
    key: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.pixels.shape[0] // self.patch, self.pixels.shape[1] // self.patch

    @property
    def tokens(self) -> int:
        """Soft tokens."""
        rows, columns = self.grid
        return rows * columns // self.pool**2

    def patches(self) -> np.ndarray:
        """The patches row by row, (P, 3·patch²) float32 in [0, 1], each by row, column and colour."""
        rows, columns = self.grid
        cut = self.pixels.reshape(rows, self.patch, columns, self.patch, 3).swapaxes(1, 2)
        made = np.empty(cut.shape, np.float32)
        # multiplied in float64, then rounded, as the reference does: float32 alone gives other bits
        np.multiply(cut, 1 / 255, out=made, dtype=np.float64, casting="unsafe")
        return made.reshape(rows * columns, -1)


def read_picture(source: Source, what: str, *, patch: int = 16, pool: int = 3, budget: int = 280) -> Picture:
    """Opens, turns upright, lays on white and resizes an image.

    Args:
        source: a path, a file's bytes, a data: URL, or an image of Pillow's, which is left as it is. A path is
            opened whatever it names: one that came over a network must not get here.
        what: names the image in errors, "image 2 of message 3".
        patch: the tower's patch_size, in pixels.
        pool: the tower's pooling_kernel_size, in patches.
        budget: soft tokens at most, one of BUDGETS.

    Raises:
        DGemmaError: no such file, no image that is supported, damaged, too large, an unknown budget.
        OutOfMemory: no room for its pixels.
    """
    if type(budget) is not int or budget not in BUDGETS:
        raise DGemmaError(f"{what}: a budget of {budget!r} soft tokens; choose {', '.join(map(str, BUDGETS))}")
    if isinstance(source, str | Path | bytes):
        image = decoded(_content(source, what), what)
    else:
        from PIL import Image

        if not isinstance(source, Image.Image):
            raise DGemmaError(f"{what} is a {type(source).__name__}; give a path, bytes or a PIL.Image")
        image = flattened(source, what)
    width, height = image.size
    h, w = target_size(height, width, budget, patch * pool)
    if (w, h) != image.size:
        from PIL.Image import Resampling

        image = image.resize((w, h), Resampling.BICUBIC)
    pixels = np.array(image)  # (h, w, 3)
    pixels.flags.writeable = False
    told = hashlib.sha256(f"{pixels.shape} {patch} {pool} {budget} ".encode())
    told.update(pixels.data)
    key = -1 - int.from_bytes(told.digest()[:16])
    return Picture(width, height, pixels, patch, pool, budget, key)


def target_size(height: int, width: int, budget: int, side: int = 48) -> tuple[int, int]:
    """Height and width after the resize: as much as the budget allows, in whole cells.

    The aspect ratio is kept but for the rounding to cells, and small images grow. What would be narrower than a
    cell becomes one cell wide, and as many long as the image is longer than wide.
    (transformers, `get_aspect_ratio_preserving_size`)

    Args:
        height: of the image, in pixels.
        width: likewise.
        budget: soft tokens at most.
        side: pixels along a cell, patch · pool.

    Raises:
        DGemmaError: no pixels.
    """
    if height < 1 or width < 1:
        raise DGemmaError(f"an image of {width} × {height} pixels has none; give another")
    factor = math.sqrt(budget * side**2 / (height * width))
    rows, columns = math.floor(factor * height / side), math.floor(factor * width / side)
    if rows == 0:
        rows, columns = 1, min(width // height, budget)
    elif columns == 0:
        rows, columns = min(height // width, budget), 1
    return rows * side, columns * side


def from_data_url(url: str, what: str) -> bytes:
    """The bytes of data:image/png;base64,… (or jpeg, webp, gif); base64 as browsers take it, blanks and all.

    Raises:
        DGemmaError: another URL, as nothing is fetched; another type; no base64; more than MAX_BYTES.
    """
    form = f"give {TYPES[0].join(('data:', ';base64,…'))}"
    if not isinstance(url, str) or url[:5].lower() != "data:":
        scheme = _URL.match(url) if isinstance(url, str) else None
        found = f"{scheme[1]}: URLs are not fetched" if scheme else "it is no data: URL"
        raise DGemmaError(f"{what}: {found}; {form}")
    head, comma, data = url[5:].partition(",")
    kind, *options = (part.strip().lower() for part in head[:200].split(";"))
    if kind not in TYPES:
        raise DGemmaError(f"{what}: a data: URL of type {kind!r}; {form}, or {', '.join(TYPES[1:])}")
    if not comma or "base64" not in options:
        raise DGemmaError(f"{what}: its data: URL is not in base64; {form}")
    if len(data) > 2 * MAX_BYTES:
        raise DGemmaError(_too_long(what))
    try:
        plain = b"".join(unquote_to_bytes(data).split())
        content = base64.b64decode(plain.rstrip(b"=") + b"=" * (-len(plain.rstrip(b"=")) % 4), validate=True)
    except (binascii.Error, UnicodeError):
        raise DGemmaError(f"{what}: its data: URL is damaged, or no base64; {form}") from None
    return _bounded(content, what)


def _content(source: str | Path | bytes, what: str) -> bytes:
    """A file's bytes, as they are given, or as they are in the file."""
    if isinstance(source, bytes):
        return _bounded(source, what)
    if isinstance(source, str) and (source[:5].lower() == "data:" or _URL.match(source)):
        return from_data_url(source, what)
    path = Path(os.path.expanduser(source))
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise DGemmaError(_too_long(what))
            return _bounded(file.read(MAX_BYTES + 1), what)  # a file may grow
    except OSError as error:
        raise DGemmaError(f"{what}: {source} cannot be read ({error.strerror}); give {KNOWN}") from None


def _bounded(content: bytes, what: str) -> bytes:
    if not content:
        raise DGemmaError(f"{what} is empty; give {KNOWN}")
    if len(content) > MAX_BYTES:
        raise DGemmaError(_too_long(what))
    return content


def _too_long(what: str) -> str:
    return f"{what} has more than {MAX_BYTES >> 20} MB; save it smaller"
