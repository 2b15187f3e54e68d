"""Decoding: what Pillow holds, or may open, as RGB pixels, upright and on white.

Four decoders run and no other, whatever bytes begin with, and none before the size is known. What a damaged
file makes Pillow say is one line; its warnings are nobody's.
"""

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from mlx_dgemma.errors import DGemmaError, OutOfMemory, first_line

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

MAX_PIXELS = 89_478_485  # of an image: where Pillow begins to speak of decompression bombs
MAX_SIDE = 1 << 18  # pixels: resizing takes memory by the longer side, however narrow the image
MAX_SCANS = 100  # of a progressive JPEG: each goes over all pixels, and ten are usual
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # Pillow's names
KNOWN = "PNG, JPEG, WebP or GIF"
BAND = 1 << 20  # pixels that are converted at a time
_SCAN, _ORIENTATION = b"\xff\xda", 0x0112
_OTHERS = {  # how files begin that people take for images, and that no decoder gets to see
    "HEIC": rb".{4}ftyp(?:hei|hev|mif1|msf1)", "AVIF": rb".{4}ftypavi", "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM.{4}\0{4}", "Photoshop": rb"8BPS", "PDF": rb"%PDF", "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "SVG": rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg",
    "icon": rb"\0\0[\1\2]\0",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
}  # fmt: skip
_lock = threading.Lock()  # filters of warnings belong to the process


def decoded(content: bytes, what: str) -> "Image":
    """The image in a file's bytes: (H, W), RGB, upright, on white; the first frame of several.

    Raises:
        DGemmaError: no PNG, JPEG, WebP or GIF; damaged, cut off, or beyond the limits above.
        OutOfMemory: no room for its pixels.
    """
    with _quietly(what):
        from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

        try:  # with WebP known already: Pillow would load every decoder that it has to find it
            image = Image.open(BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise DGemmaError(_unknown(content, what)) from None
        with image:
            if content.startswith(b"\xff\xd8") and content.count(_SCAN) > MAX_SCANS:
                raise DGemmaError(f"{what}: a JPEG of more than {MAX_SCANS} scans; save it as a plain one")
            return _upright(image, what)


def flattened(image: "Image", what: str) -> "Image":
    """As `decoded`, of an image of Pillow's, in any mode, which stays as it is.

    Raises:
        DGemmaError: closed, damaged, or beyond the limits above; numbers that are no colours.
        OutOfMemory: no room for its pixels.
    """
    with _quietly(what):
        return _upright(image, what)


@contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Pillow without its warnings, and with its errors in one line."""
    from PIL.Image import DecompressionBombError

    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        except DGemmaError:
            raise
        except DecompressionBombError:
            raise DGemmaError(_too_large(what, "too many pixels")) from None
        except MemoryError:
            raise OutOfMemory(f"{what}: no memory for its pixels; give a smaller image") from None
        except Exception as error:  # there is no saying what damaged files make decoders raise
            raise DGemmaError(f"{what} cannot be decoded ({first_line(error)}); give another image") from None


def _upright(image: "Image", what: str) -> "Image":
    width, height = image.size
    if not width or not height:
        raise DGemmaError(f"{what} has no pixels ({width} × {height}); give another image")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise DGemmaError(_too_large(what, f"{width} × {height} pixels"))
    image.load()
    turn = _turn(image)
    rgb = _on_white(image, what)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: "Image") -> "Transpose | None":
    """What turns an image upright, by its EXIF orientation."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # notes beside the pixels that nobody can read: the pixels are as good
        return None


def _on_white(image: "Image", what: str) -> "Image":
    """An image in RGB: itself, or converted band by band, as whole copies with alpha may take a gigabyte."""
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    made = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        made.paste(_band_on_white(band, what), (0, top))
    return made


def _band_on_white(band: "Image", what: str) -> "Image":
    from PIL import Image

    if band.mode == "F":
        raise DGemmaError(f"{what}: its pixels are floats, which are no colours; convert it to 8 bits")
    if band.mode.startswith("I"):
        band = _eight_bits(band, what)
    if not band.has_transparency_data:
        return band.convert("RGB")
    if band.mode == "La":  # not known to convert any further
        band = band.convert("LA")
    white = Image.new("RGBA", band.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, band.convert("RGBA")).convert("RGB")


def _eight_bits(band: "Image", what: str) -> "Image":
    """16-bit greyscale, scaled: Pillow would cut everything above 255 off."""
    from PIL import Image

    values = np.asarray(band).astype(np.int64)  # (rows, columns)
    if values.min() < 0 or values.max() > 65535:
        raise DGemmaError(f"{what}: its pixels are integers beyond 16 bits; convert it to 8 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(clear := band.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _too_large(what: str, found: str) -> str:
    return f"{what}: {found}, where {MAX_PIXELS:,} at most are read, {MAX_SIDE:,} on a side; scale it down"


def _unknown(content: bytes, what: str) -> str:
    name = next((name for name, begins in _OTHERS.items() if re.match(begins, content[:1024], re.DOTALL)), None)
    found = f"{name} is not supported" if name else "it is no image"
    return f"{what}: {found}; give {KNOWN}"
