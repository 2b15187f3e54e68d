"""JSON files that a command line names: function schemas, and the schema of an answer."""

import json
import sys
from pathlib import Path
from typing import Any

from mlx_dgemma.distributed.plan import Plan
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import read_file


def read_tools(path: str) -> list[dict[str, Any]]:
    """Function schemas from a JSON file: a list, or an object whose "tools" are one.

    Raises:
        DGemmaError: a file that cannot be read or is none.
    """
    content = _read_json(path, "tools")
    tools = content.get("tools") if isinstance(content, dict) else content
    if not isinstance(tools, list):
        raise DGemmaError(f"{path}: it holds no list; give a JSON list of function schemas")
    return tools


def read_schema(path: str) -> dict[str, Any]:
    """The form of an answer from a JSON file: a schema, by itself or as OpenAI's clients wrap it."""
    content = _read_json(path, "a schema")
    wrapped = content.get("json_schema", content) if isinstance(content, dict) else content
    schema = wrapped["schema"] if isinstance(wrapped, dict) and isinstance(wrapped.get("schema"), dict) else wrapped
    if not isinstance(schema, dict):
        raise DGemmaError(f"{path}: it holds no schema; give a JSON object")
    return {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}


def read_stdin(plan: Plan | None = None) -> bytes:
    """All that stands on stdin; of the first rank, where several write together."""
    if plan is None:
        return sys.stdin.buffer.read()
    from mlx_dgemma.distributed.session import first_stdin  # late: it needs MLX

    return first_stdin()


def _read_json(path: str, what: str) -> Any:
    try:
        return json.loads(read_file(Path(path).expanduser()))
    except (OSError, ValueError, RecursionError) as error:
        raise DGemmaError(f"{path}: cannot be read as {what} ({first_line(error)}); give a JSON file") from None
