"""What pages share: the report, which has all of it inside, and the server's page, which has it as modules."""

import re
from importlib.resources import files

SHARED = ("dom.js", "colour.js", "token.js")  # scripts, in the order in which they need each other
STYLE = "base.css"
_IMPORT = re.compile(r"^import [^;]*;\n", re.M)


def asset(name: str, room: str = "mlx_dgemma.web") -> str:
    """A file of a room's assets."""
    return (files(room) / "assets" / name).read_text(encoding="utf-8")


def inlined(module: str) -> str:
    """A shared module as part of one script, in which names need no imports."""
    return re.sub(r"^export ", "", _IMPORT.sub("", module), flags=re.M)
