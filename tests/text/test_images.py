"""Images become what the reference's processor makes of them, bit for bit; sources that are none are one line."""

import base64
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

from mlx_dgemma import DGemmaError
from mlx_dgemma.text import images
from mlx_dgemma.text.images import BUDGETS, from_data_url, read_picture, target_size
from tests.text.pictures import FORMATS, coloured, compare, reference, refusal, saved

# ---- the reference


SIZES = ((48, 48), (768, 768), (300, 500), (1, 1), (3, 4), (33, 3000), (2100, 31), (1000, 1), (17, 1201))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_patches_are_the_references_bit_for_bit(size, budget):
    image = coloured(*size)
    compare(read_picture(image, "image 1", budget=budget), *reference(image, budget, 16, 3))


@pytest.mark.parametrize(("patch", "pool"), [(4, 3), (14, 2), (8, 1), (5, 3)])
def test_other_towers_have_other_cells(patch, pool):
    for budget, size in ((70, (90, 130)), (280, (400, 37))):
        image = coloured(*size)
        picture = read_picture(image, "image 1", patch=patch, pool=pool, budget=budget)
        compare(picture, *reference(image, budget, patch, pool))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes_are_the_references(mode):
    image = coloured(70, 50, "L").convert("1") if mode == "1" else coloured(70, 50, mode)
    if mode in ("P", "PA"):
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    compare(read_picture(image, "image 1", budget=70), *reference(image, 70, 16, 3))


@pytest.mark.parametrize("form", FORMATS)
def test_files_are_what_the_reference_sees_of_them(form, tmp_path):
    (tmp_path / "image").write_bytes(saved(coloured(90, 61), form))
    with Image.open(tmp_path / "image") as opened:
        values, positions = reference(opened, 280, 16, 3)
    for source in (tmp_path / "image", str(tmp_path / "image"), (tmp_path / "image").read_bytes()):
        picture = read_picture(source, "image 1")
        compare(picture, values, positions)
        assert (picture.width, picture.height, picture.patch, picture.pool) == (90, 61, 16, 3)


sides = st.integers(1, 100_000)


@given(sides, sides, st.sampled_from(BUDGETS), st.sampled_from([(16, 3), (4, 3), (14, 2)]))
def test_any_size_is_within_the_budget_in_whole_cells_and_the_references(height, width, budget, cell):
    patch, pool = cell
    side = patch * pool
    h, w = target_size(height, width, budget, side)
    assert h % side == w % side == 0 and min(h, w) >= side and h * w <= budget * side**2
    assert (h, w) == get_aspect_ratio_preserving_size(height, width, patch, budget * pool**2, pool)


@pytest.mark.parametrize(
    ("height", "width", "tokens"),
    [
        (1024, 1024, (64, 121, 256, 529, 1089)), (1080, 1920, (66, 120, 264, 527, 1100)),
        (3024, 4032, (63, 130, 266, 540, 1064)), (32, 3000, (70, 114, 162, 458, 972)), (1, 100_000, BUDGETS),
        (100_000, 1, BUDGETS),
    ],
)  # fmt: skip
def test_how_many_tokens_an_image_takes(height, width, tokens):
    assert tuple(math.prod(target_size(height, width, budget)) // 48**2 for budget in BUDGETS) == tokens


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_size_without_pixels_is_refused(size):
    with pytest.raises(DGemmaError, match="has none"):
        target_size(*size, 280)


# ---- what a picture is called


def test_a_key_names_pixels_and_budget():
    image, other = coloured(90, 61), coloured(90, 61)
    other.putpixel((40, 30), (0, 0, 0))
    key = read_picture(image, "image 1").key
    assert key == read_picture(saved(image), "another name").key
    pictures = (
        read_picture(other, "image 1"),
        read_picture(image, "image 1", budget=140),
        read_picture(image.rotate(180), ""),
    )
    others = {picture.key for picture in pictures}
    assert len(others) == 3 and key not in others and all(own < 0 for own in (*others, key))
    assert any(own.bit_length() > 62 for own in others)


def test_budgets_have_keys_of_their_own_where_the_pixels_are_equal(monkeypatch):
    monkeypatch.setattr(images, "BUDGETS", (70, 71))
    few, more = (read_picture(coloured(9, 9), "image 1", budget=budget) for budget in (70, 71))
    assert np.array_equal(few.pixels, more.pixels) and few.key != more.key


def test_keys_tell_shapes_apart_that_share_their_bytes():
    high, wide = (read_picture(Image.new("RGB", size), "image 1", budget=70) for size in ((48, 3360), (3360, 48)))
    assert high.pixels.tobytes() == wide.pixels.tobytes() and high.key != wide.key


def test_pixels_cannot_be_changed_behind_the_key():
    with pytest.raises(ValueError, match="read-only"):
        read_picture(coloured(9, 9), "image 1").pixels[0, 0] = 0


# ---- what is refused, in one line


def test_an_unknown_budget_names_the_five():
    for budget in (0, 281, -70, True, 70.0, "70", None):
        assert "choose 70, 140, 280, 560, 1120" in refusal(coloured(9, 9), budget=budget)


@pytest.mark.parametrize("source", [None, 5, ["a.png"], np.zeros((9, 9, 3)), bytearray(b"x"), {"url": "x"}], ids=repr)
def test_what_is_no_source_is_named(source):
    assert f"is a {type(source).__name__}; give a path, bytes or a PIL.Image" in refusal(source)


def test_paths_that_lead_to_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    for name, said in (
        ("gone.png", "No such file"), (".", "directory"), ("pipe.png", "Not an ordinary file"),
        ("a\0b", "No such file"), ("empty.png", "is empty"), ("a" * 300, "name too long"),
        ("/dev/zero", "Not an ordinary file"),
    ):  # fmt: skip
        assert said in refusal(tmp_path / name) and said in refusal(str(tmp_path / name))
    assert "is empty" in refusal(b"")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def forbidden(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a.png").write_bytes(saved(coloured(9, 9)))
    monkeypatch.setattr(Path, "open", forbidden)  # root may read everything
    assert "a.png cannot be read (Permission denied)" in refusal(tmp_path / "a.png")


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(saved(coloured(9, 9)))
    assert read_picture("~/a.png", "image 1").width == 9


def test_a_long_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    monkeypatch.setattr(images, "_bounded", lambda *_: pytest.fail("it was read"))
    assert "more than 32 MB" in refusal(tmp_path / "long.png")


def test_long_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    assert "more than 1 MB" in refusal(bytes((1 << 20) + 1))
    with pytest.raises(DGemmaError, match="more than 1 MB"):
        from_data_url(f"data:image/png;base64,{'A' * (3 << 20)}", "image 1")


# ---- imports


def test_without_images_pillow_is_not_imported():
    code = "import sys, mlx_dgemma.text.images; assert 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- data: URLs


def test_data_urls_are_taken_as_browsers_take_them():
    content = saved(coloured(9, 7))
    plain = base64.b64encode(content).decode()
    for url in (
        f"data:image/png;base64,{plain}", f"DATA:image/PNG;Base64,{plain}",
        f"data:image/jpeg;name=a.png;base64,{plain}",
        f"data:image/webp;base64,{plain.rstrip('=')}", f"data:image/gif;base64,{plain[:50]}\r\n {plain[50:]}",
        f"data:image/jpg;base64,{plain.replace('+', '%2B').replace('/', '%2f').replace('=', '%3D')}",
    ):  # fmt: skip
        assert from_data_url(url, "image 1") == content
        assert read_picture(url, "image 1").width == 9


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://a.b/c.png", "http: URLs are not fetched"), ("https://a.b/c.png", "https: URLs are not fetched"),
        ("file:///etc/passwd", "file: URLs are not fetched"), ("FTP://a.b", "URLs are not fetched"),
        ("iVBORw0KGgo=", "it is no data: URL"), ("", "it is no data: URL"), (5, "it is no data: URL"),
        ("data:", "of type ''"), ("data:;base64,AAAA", "of type ''"),
        ("data:text/html;base64,AAAA", "of type 'text/html'"),
        ("data:image/svg+xml;base64,AAAA", "'image/svg+xml'"), ("data:image/png,AAAA", "not in base64"),
        ("data:image/png;base64", "not in base64"), ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,no base64!", "damaged"), ("data:image/png;base64,AAAAA", "damaged"),
        ("data:image/png;base64,AA=A", "damaged"), ("data:image/png;base64,é", "damaged"),
        ("data:image/png;base64,\ud800", "damaged"), (f"data:{'x' * 5000};base64,AAAA", "of type 'xxx"),
    ],
)  # fmt: skip
def test_other_urls_are_one_line(url, said):
    with pytest.raises(DGemmaError) as error:
        from_data_url(url, "image 1")
    line = str(error.value)
    assert said in line and ("data:image/png;base64,…" in line or said == "is empty")
    assert line.startswith("image 1") and len(line) < 400 and len(line.splitlines()) == 1


def test_a_path_that_is_a_url_is_not_looked_for():
    assert "https: URLs are not fetched" in refusal("https://example.org/cat.png")
