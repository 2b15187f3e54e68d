"""Reading nothing but files, and names that are none."""

import os
import tomllib
from pathlib import Path

import pytest

from mlx_dgemma import DGemmaError
from mlx_dgemma.files import check_writable, open_file, read_file

ROOT = Path(__file__).parents[1]


def test_a_file_is_read(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("f")
    assert read_file(tmp_path / "link") == b"abc"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Not an ordinary file"):
        open_file(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["/dev/zero", "/", "no/such", "a\x00b", "x" * 5000])
def test_what_is_no_file(tmp_path, name):
    with pytest.raises(OSError, match=r"\[Errno"):
        read_file(tmp_path / name)


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(DGemmaError, match="no name of a file"):
        check_writable(tmp_path / "a\x00b")


def setuptools() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["setuptools"]


def test_every_room_is_in_the_wheel():
    """The list of packages is written out, as one of them lies elsewhere."""
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mlx_dgemma").rglob("__init__.py")}
    assert set(setuptools()["packages"]) == found | {"mlx_dgemma.converter"}


def test_every_file_that_is_no_module_is_in_the_wheel():
    packed = {
        path
        for package, patterns in setuptools()["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    found = {path for path in (ROOT / "mlx_dgemma").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in found if path.suffix not in (".py", ".pyc")} == packed
