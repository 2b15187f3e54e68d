"""Files that are whole or not there: written under a neighbouring name, then renamed. Reading none but files."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mlx_dgemma.errors import DGemmaError, first_line


def open_file(path: Path) -> BinaryIO:
    """Opens an ordinary file to read: a pipe would be waited for, and a device need not end.

    Raises:
        OSError: what `open` raises, and anything that is no ordinary file; the name holds what no name can.
    """
    try:
        mode = path.stat().st_mode
    except ValueError:  # a NUL in the name
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), ascii(str(path))) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not an ordinary file", str(path))
    return path.open("rb")


def read_file(path: Path) -> bytes:
    """The bytes of an ordinary file; OSError as `open_file`."""
    with open_file(path) as file:
        return file.read()


def check_writable(path: str | Path) -> None:
    """Finds out now what would keep `write_whole` from writing later.

    Raises:
        DGemmaError: no such folder, no right to write there, or the name of something that is no ordinary file.
    """
    target = _target(path)
    try:
        if not target.parent.is_dir():
            raise DGemmaError(f"{path} cannot be written: there is no folder {target.parent}; make it first")
        if target.exists() and not target.is_file():
            raise DGemmaError(f"{path} cannot be written: it is no ordinary file; choose another name")
        try:
            _neighbour(target).touch()
        finally:
            _neighbour(target).unlink(missing_ok=True)
    except OSError as error:
        raise DGemmaError(f"{path} cannot be written: {error.strerror}; choose another place") from None


def check_output(path: Path, *, resume: bool, force: bool) -> None:
    """Refuses an --output that cannot be gone on with, or that holds something nobody said what to do with.

    Raises:
        DGemmaError: what is wrong, and what to do.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise DGemmaError(
            f"--output {path}: {'a folder' if path.is_dir() else 'its folder does not exist'}; name a file"
        )
    if path.exists() and not path.is_file():
        raise DGemmaError(f"--output {path} is no ordinary file; name another")
    if path.exists() and not (resume or force):
        raise DGemmaError(f"{path} exists; --resume goes on with it, --force starts over")


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with an open file, which takes its name only when complete; what stood there stays until then.

    Raises:
        DGemmaError: as `check_writable`, or the disk is full.
    """
    check_writable(path)
    target = _target(path)
    neighbour = _neighbour(target)
    try:
        with neighbour.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(target)
    except OSError as error:
        raise DGemmaError(f"{path} could not be written: {error.strerror or first_line(error)}") from None
    finally:
        neighbour.unlink(missing_ok=True)


def _target(path: str | Path) -> Path:
    """What gets written: a link keeps being one."""
    try:
        return Path(os.path.realpath(os.path.expanduser(path)))
    except ValueError:  # a NUL in the name
        raise DGemmaError(f"{str(path)!a} cannot be written: it is no name of a file; choose another") from None


def _neighbour(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")
