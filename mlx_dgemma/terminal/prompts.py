"""Many prompts from a file of JSON lines, and the file that takes their answers as they finish. No heavy imports."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from mlx_dgemma.distributed.plan import Plan
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import read_file
from mlx_dgemma.terminal.inputs import read_stdin
from mlx_dgemma.text.request import Prompt, Request

FORM = 'give a JSON text, or an object with "prompt" or "messages" and, if wanted, "id" and "seed"'


@dataclass(frozen=True)
class Asked:
    """A line of the file.

    Attributes:
        number: of the line, from 1.
        name: its "id", whatever that is; None if it has none.
        request: what it asks.
    """

    number: int
    name: Any
    request: Request

    def key(self, checkpoint: str) -> str:
        """Tells it from what another run asked at this line."""
        return hashlib.sha256(f"{checkpoint} {self.request!r}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_prompts(
    path: str, base: Request, prompt_of: Callable[[str], Prompt], plan: Plan | None = None
) -> list[Asked]:  # fmt: skip
    """What each line asks; empty lines are left out.

    Args:
        path: of the file; "-" is stdin.
        base: the request, but for prompt and seed.
        prompt_of: makes a prompt of a text.
        plan: how several processes write together, of which the first one's stdin is read.

    Raises:
        DGemmaError: the file cannot be read, or a line asks nothing.
    """
    try:
        content = read_stdin(plan) if path == "-" else read_file(Path(path).expanduser())
    except OSError as error:
        raise DGemmaError(f"{path}: cannot be read ({error.strerror}); give a file of JSON lines") from None
    asked = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            asked.append(_asked(number, json.loads(line), base, prompt_of))
        except (DGemmaError, ValueError, RecursionError) as error:
            raise DGemmaError(f"{path}:{number}: {first_line(error)}; {FORM}") from None
    if not asked:
        raise DGemmaError(f"{path}: it holds no line; {FORM}")
    return asked


def _asked(number: int, content: Any, base: Request, prompt_of: Callable[[str], Prompt]) -> Asked:
    fields = {"prompt": content} if isinstance(content, str) else content
    if not isinstance(fields, dict):
        raise DGemmaError("it asks nothing")
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise DGemmaError("it asks nothing" if prompt is None else "it asks twice")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise DGemmaError('"prompt" is no text that says anything')
    if messages is not None and not (isinstance(messages, list) and messages):
        raise DGemmaError('"messages" are no list')
    seed = base.seed if fields.get("seed") is None else fields["seed"]
    own: Prompt = prompt_of(prompt) if isinstance(prompt, str) else messages or []
    return Asked(number, fields.get("id"), replace(base, prompt=own, seed=seed))


class Answers:
    """Where answers go, a line of JSON each, as they finish: a file, or stdout."""

    def __init__(self, path: str | None, checkpoint: str):
        self.path, self.checkpoint = path, checkpoint
        self._file: TextIO = sys.stdout

    def open(self, asked: Sequence[Asked], *, resume: bool) -> list[Asked]:
        """Opens the file; what is left to be answered.

        Raises:
            DGemmaError: a file of another run, or one that cannot be written.
        """
        if self.path is None:
            return list(asked)
        path, done, nbytes = Path(self.path), set[int](), 0
        try:
            if resume and path.exists():
                content = read_file(path)
                nbytes = content.rfind(b"\n") + 1  # what follows was cut off
                done = self._done(content[:nbytes], {own.number: own.key(self.checkpoint) for own in asked})
            self._file = path.open("a", encoding="utf-8")
            os.truncate(path, nbytes)
        except OSError as error:
            raise DGemmaError(f"--output {path} cannot be written: {error.strerror}; choose another place") from None
        return [own for own in asked if own.number not in done]

    def _done(self, content: bytes, keys: dict[int, str]) -> set[int]:
        """The lines that were answered."""
        done = set()
        for number, line in enumerate(content.splitlines(), 1):
            try:
                answer = json.loads(line)
                is_ours = keys[answer["line"]] == answer["key"]
            except (ValueError, LookupError, TypeError, RecursionError):
                is_ours = False
            if not is_ours:
                raise DGemmaError(
                    f"{self.path}:{number}: no answer to these prompts with these settings; give another --output, or "
                    "--force to start over"
                )
            done.add(answer["line"])
        return done

    def write(self, own: Asked, answer: dict[str, object]) -> None:
        """Writes an answer and hands it to the operating system."""
        known = {"line": own.number, "id": own.name, "key": own.key(self.checkpoint)}
        self._file.write(json.dumps({**known, **answer}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not sys.stdout:
            self._file.close()
