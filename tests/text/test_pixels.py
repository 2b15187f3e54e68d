"""Pixels: upright, on white, in eight bits, whatever form an image has; what is none is one line, before it costs."""

import struct
import threading
import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from mlx_dgemma.text import pixels
from mlx_dgemma.text.images import read_picture
from tests.text.pictures import FORMATS, chunk, coloured, compare, fitting, png, reference, refusal, saved

# ---- upright, on white, in eight bits


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(coloured(90, 61), form, exif=exif, **FORMATS[form])
    with Image.open(BytesIO(content)) as opened:
        upright = ImageOps.exif_transpose(opened)
        given_open = read_picture(opened, "image 1")
    picture = read_picture(content, "image 1")
    assert (picture.width, picture.height) == upright.size == ((90, 61) if orientation < 5 else (61, 90))
    compare(picture, *reference(upright, 280, 16, 3))
    assert given_open.key == picture.key  # not so in the reference, which turns what it opens itself only


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, b"nonsense"])
def test_a_damaged_orientation_turns_nothing(exif):
    content = saved(coloured(90, 61), "PNG", exif=exif)
    assert read_picture(content, "image 1").key == read_picture(coloured(90, 61), "image 1").key


def test_transparent_is_white():
    half = fitting((200, 0, 100, 128), "RGBA")
    palette = fitting(0, "P")
    palette.putpalette([200, 0, 100, 0, 0, 0])
    grey = png(768, 768, 16, 0, (b"\0" + b"\x12\x34" * 768) * 768, chunk(b"tRNS", b"\x12\x34"))
    for source, colour in (
        (half, [227, 127, 177]), (saved(half), [227, 127, 177]), (saved(half, "WEBP"), [227, 127, 177]),
        (fitting((50, 0), "LA"), [255] * 3), (saved(fitting((50, 0), "LA")), [255] * 3),
        (fitting((50, 0), "La"), [255] * 3), (fitting((100, 0, 50, 128), "RGBa"), [227, 127, 177]),
        (saved(palette), [200, 0, 100]), (saved(palette, transparency=0), [255] * 3),
        (saved(palette, transparency=bytes([128, 0])), [227, 127, 177]),
        (saved(palette, "GIF", transparency=0), [255] * 3),
        (saved(fitting((1, 2, 3)), transparency=(1, 2, 3)), [255] * 3),
        (saved(fitting((1, 2, 3)), transparency=(1, 2, 4)), [1, 2, 3]),
        (saved(fitting(7, "L"), transparency=7), [255] * 3), (grey, [255] * 3),
    ):  # fmt: skip
        assert np.array_equal(
            read_picture(source, "image 1").pixels, np.broadcast_to(np.uint8(colour), (768, 768, 3))
        ), colour


def test_an_image_in_bands_is_an_image_in_one_piece(monkeypatch):
    image = coloured(33, 70, "RGBA")
    whole = read_picture(image, "image 1")
    monkeypatch.setattr(pixels, "BAND", 100)  # three rows at a time, and one at the end
    assert read_picture(image, "image 1").key == whole.key


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_greys_of_16_bits_are_scaled_and_not_cut_off(mode):
    values = np.linspace(0, 65535, 768 * 768).reshape(768, 768)
    order = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (768, 768), np.round(values).astype(order).tobytes())
    wanted = np.round(np.round(values) / 257)[..., None]
    for source in (image, saved(image)) if mode == "I;16" else (image,):
        assert np.array_equal(read_picture(source, "image 1").pixels, np.broadcast_to(wanted, (768, 768, 3)))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("F", (9, 9), 0.5), "floats"), (Image.new("I", (9, 9), 65536), "beyond 16 bits"),
        (Image.new("I", (9, 9), -1), "beyond 16 bits"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_colours_are_refused(image, said):
    assert said in refusal(image) and "convert it to 8 bits" in refusal(image)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken(form):
    first, second = coloured(90, 61, seed=1), coloured(90, 61, seed=2)
    options = {"save_all": True, "append_images": [second], "duration": 100, **FORMATS[form]}
    content = saved(first, form, **options)
    with Image.open(BytesIO(content)) as opened:
        assert opened.n_frames == 2
    single = read_picture(saved(first, form), "image 1")
    assert read_picture(content, "image 1").key == single.key


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_an_image_that_is_given_stays_as_it_is(mode):
    image = Image.frombytes(
        mode, (9, 5), bytes(range(45)) * len(Image.new(mode, (1, 1)).getbands()) + bytes(45 * (mode == "I;16"))
    )
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
        image.info["transparency"] = bytes(range(256))
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    before = (
        image.tobytes(),
        image.mode,
        image.size,
        dict(image.info),
        image.getpalette("RGBA") if mode == "P" else None,
    )
    picture = read_picture(image, "image 1")
    after = image.tobytes(), image.mode, image.size, dict(image.info), image.getpalette("RGBA") if mode == "P" else None
    assert before == after and (picture.width, picture.height) == (5, 9)


# ---- what is refused, in one line


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_one_line(form):
    content = saved(coloured(90, 61), form)
    for length in (12, 40, len(content) // 2, len(content) - 30):
        assert "; give " in refusal(content[:length])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (saved(coloured(9, 9), "TIFF"), "TIFF"), (saved(coloured(9, 9), "BMP"), "BMP"),
        (saved(coloured(9, 9), "PDF"), "PDF"), (saved(coloured(9, 9), "EPS"), "PostScript"),
        (saved(coloured(32, 32), "ICO", bitmap_format="bmp"), "icon"), (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC"), (b"\0\0\0\x1cftypavif" + bytes(40), "AVIF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"), (b"<svg/>", "SVG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"), (b"\xff\x0a" + bytes(40), "JPEG XL"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_formats_are_refused_by_name(content, name, monkeypatch):
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile._open", lambda self: pytest.fail("a decoder ran"))
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile._open", lambda self: pytest.fail("a decoder ran"))
    assert f": {name} is not supported; give PNG, JPEG, WebP or GIF" in refusal(content)


@pytest.mark.parametrize(
    "content", [b"hello", b"BM is no bitmap", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", bytes(99)]
)
def test_a_text_is_no_image(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    for source in (content, tmp_path / "a.png"):
        assert "; give " in refusal(source)


MOVING = saved(coloured(9, 9), "WEBP", save_all=True, append_images=[coloured(9, 9, seed=1)])


@pytest.mark.parametrize(
    "content",
    [
        png(10_000, 10_000, 8, 2), png(60_000, 60_000, 8, 2), png(1, 300_000, 8, 0), png(300_000, 1, 8, 0),
        MOVING[:24] + b"\xfe\x3f\0" * 2 + MOVING[30:],  # two frames on a canvas of 16,383 × 16,383
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\1\0\0;",
    ],
    ids=["warned of", "an error", "high", "wide", "webp", "gif"],
)  # fmt: skip
def test_bombs_are_refused_before_they_are_decoded(content, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    assert "89,478,485 at most" in refusal(content)


def test_a_large_image_that_is_given_is_refused_too(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 80)
    assert "9 × 9 pixels" in refusal(coloured(9, 9)) and read_picture(coloured(9, 8), "image 1").width == 9


def test_a_jpeg_that_goes_over_its_pixels_for_ever_is_refused():
    content = saved(coloured(64, 64), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert "more than 100 scans" in refusal(content[:-2] + scan * 100 + content[-2:])
    assert read_picture(content[:-2] + scan * 5 + content[-2:], "image 1").width == 64


def test_images_without_pixels():
    for size in ((0, 0), (0, 5), (5, 0)):
        assert f"has no pixels ({size[0]} × {size[1]})" in refusal(Image.new("RGB", size))
    assert "; give " in refusal(png(0, 1, 8, 0, b"\0"))


def test_images_that_are_closed_or_damaged(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(coloured(90, 61)))
    closed, loaded = Image.open(tmp_path / "a.png"), coloured(9, 9)
    closed.close()
    loaded.close()
    damaged = Image.open(BytesIO(saved(coloured(90, 61), "JPEG")[:900]))
    for image in (closed, loaded, damaged):
        assert "cannot be decoded (" in refusal(image)


def test_no_room_is_told(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    assert "no memory" in refusal(saved(coloured(9, 9)))


def test_the_longest_images_are_read():
    for size, cells in (((1, 262_144), (280, 1)), ((262_144, 1), (1, 280))):
        picture = read_picture(Image.new("1", size), "image 1")
        assert picture.grid == (3 * cells[0], 3 * cells[1]) and picture.tokens == 280


# ---- warnings, threads, imports


def test_pillows_warnings_are_nobodys(capfd):
    content = saved(coloured(90, 61), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\0\0\0\xf0\0\0\0")
    with warnings.catch_warnings(record=True) as caught, Image.open(BytesIO(content)) as opened:
        warnings.simplefilter("always")
        opened.getexif()
    assert caught  # there are some
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        read_picture(content, "image 1")
        refusal(png(10_000, 10_000, 8, 2))
        assert warnings.filters == before
    assert not caught and capfd.readouterr() == ("", "")


def test_many_threads_read_what_one_reads():
    contents = [saved(coloured(90, 61, seed=seed), form) for seed in range(4) for form in FORMATS]
    wanted, before = [read_picture(content, "image 1").key for content in contents], list(warnings.filters)
    found: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: read_picture(contents[i], "image 1").key}))
        for i in range(len(contents))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(contents))] == wanted and warnings.filters == before
