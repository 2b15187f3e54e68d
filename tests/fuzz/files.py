"""Things that stand where a file is expected."""

import os
import random
from pathlib import Path

WAYS = ("missing", "folder", "pipe", "empty", "link to itself", "link to nothing", "link outside", "socket", "text")


def put(path: Path, way: str) -> None:
    """Puts it there, in place of what there was."""
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink(missing_ok=True)
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way.startswith("link"):
        path.symlink_to({"link to itself": path.name, "link to nothing": "nowhere"}.get(way, "/dev/zero"))
    elif way == "socket":
        os.mknod(path, 0o140600)
    elif way in ("empty", "text"):
        path.write_text("" if way == "empty" else "no such thing\n")


def odd(random: random.Random) -> str:
    """One of the ways."""
    return random.choice(WAYS)
