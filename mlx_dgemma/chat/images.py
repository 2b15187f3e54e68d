"""Images for a question: their paths in what is typed, and their files, which are read and checked once."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import open_file
from mlx_dgemma.text.images import MAX_BYTES, read_picture
from mlx_dgemma.text.messages import Message
from mlx_dgemma.text.pixels import KNOWN

if TYPE_CHECKING:
    from mlx_dgemma.model.diffusion_gemma import DiffusionGemma

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
BEGINNINGS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}  # of files, and their types
# A word as a shell reads it, and as a terminal pastes the name of a file that is dropped on it. Blanks are a shell's:
# macOS writes another kind of space into the names of screenshots.
_WORD = re.compile(r"""(?:\\.|'[^']*'|"(?:\\.|[^"\\])*+"|[^'"\\ \t\r\n])++(?![^ \t\r\n])""", re.DOTALL)
_PLAIN = re.compile(r"[^ \t\r\n]+")
_QUOTED = re.compile(r"""\\(.)|'([^']*)'|"((?:\\.|[^"\\])*+)\"""", re.DOTALL)


@dataclass(frozen=True)
class Attached:
    """An image that the next question takes along.

    Attributes:
        about: its file, size and tokens, for people.
        part: of the question's message. The file's bytes are in it, so that nothing which becomes of the file later
            changes the conversation.
    """

    about: str
    part: Message


def attach(model: DiffusionGemma, path: str, budget: int | None) -> Attached:
    """Reads an image's file.

    Args:
        model: what will see it.
        path: of the file.
        budget: soft tokens of an image at most; None takes the checkpoint's.

    Raises:
        DGemmaError: a model that cannot see, a file that cannot be read, no image that is supported.
    """
    config = model.require_eyes().config
    try:
        with open_file(Path(os.path.expanduser(path))) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DGemmaError(f"{path} cannot be read ({error.strerror}); give {KNOWN}") from None
    patch, pool = config.patch_size, config.pooling_kernel_size
    seen = read_picture(content, path, patch=patch, pool=pool, budget=budget or config.soft_tokens)
    kind = next(kind for beginning, kind in BEGINNINGS.items() if content.startswith(beginning))
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    about = f"{path}, {seen.width}×{seen.height}, {seen.tokens} tokens"
    return Attached(about, {"type": "image_url", "image_url": {"url": url}})


def paths_in(typed: str) -> tuple[list[str], str]:
    """The files of images whose names a line begins with, quoted as for a shell or not at all; and the text behind.

    A name is taken for one only where there is such a file, as questions may begin in any way.
    """
    paths, rest = list[str](), typed
    while text := rest.strip(" \t\r\n"):
        name, behind = next((own for own in _beginnings(text) if _is_image(own[0])), ("", ""))
        if not name:
            break
        paths.append(name)
        rest = behind
    return paths, text if paths else typed


def unquoted(word: str) -> str:
    """A word without a shell's quotes and backslashes."""

    def plain(found: re.Match[str]) -> str:
        return found[1] or found[2] or re.sub(r'\\(["\\$`])', r"\1", found[3] or "")

    return _QUOTED.sub(plain, word)


def _beginnings(text: str) -> Iterator[tuple[str, str]]:
    """Names that a text may begin with, and what is behind them: all of it, a word, a word as it stands."""
    yield text, ""
    if word := _WORD.match(text):
        yield unquoted(word[0]), text[word.end() :]
    if plain := _PLAIN.match(text):
        yield plain[0], text[plain.end() :]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and os.path.isfile(os.path.expanduser(name))
