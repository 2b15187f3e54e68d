"""Files that are whole or not there: written under a neighbouring name, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mlx_dgemma.errors import DGemmaError, first_line


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
        _neighbour(target).touch()
        _neighbour(target).unlink()
    except OSError as error:
        raise DGemmaError(f"{path} cannot be written: {error.strerror}; choose another place") from None


def write_whole(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
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
    return Path(os.path.realpath(Path(path).expanduser()))  # a link keeps being one


def _neighbour(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")
