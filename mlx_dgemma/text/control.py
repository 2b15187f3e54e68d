"""Control tokens that somebody spells out in a message stay text, to the letter.

A chat template writes control tokens beside what a message says, in one string; encoded as it is, `<turn|>` in a
message would end its turn. So the names are set aside before the template is rendered, and put back between its own.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from mlx_dgemma.errors import DGemmaError

THOUGHT = ("<|channel>", "<channel|>")  # templates take thoughts out of what the model said
Json = TypeVar("Json")
MARKS = range(0xF0000, 0xF1000)  # private characters, of which two are used that no message has


@runtime_checkable
class SpellsOut(Protocol):
    """A tokenizer that can tell a control token from text that spells its name."""

    control_tokens: dict[str, int]

    def encode_plain(self, text: str) -> list[int]: ...


def names_in(tokenizer: SpellsOut, value: object) -> bool:
    """Whether a text anywhere in JSON values spells a control token."""
    pattern = _pattern(tokenizer.control_tokens)
    return any(pattern.search(text) for text in _texts(value))


class SetAside:
    """The names of control tokens in some messages, behind marks."""

    def __init__(self, tokenizer: SpellsOut, *values: object):
        """`values`: all that the marks must not occur in."""
        self.tokenizer = tokenizer
        self._names = list(tokenizer.control_tokens)
        self._pattern = _pattern(tokenizer.control_tokens)
        used = set().union(*_texts(values))
        free = [chr(i) for i in MARKS if chr(i) not in used][:2]
        if len(free) < 2:
            raise DGemmaError("the messages use every private character of Unicode; leave some out")
        self._open, self._close = free

    def marked(self, value: Json, *, but: tuple[str, ...] = ()) -> Json:
        """JSON values with every name behind a mark, but for these."""
        made: Json = _mapped(
            value, lambda text: self._pattern.sub(lambda m: m[0] if m[0] in but else self._mark(m[0]), text)
        )
        return made

    def _mark(self, name: str) -> str:
        return f"{self._open}{self._names.index(name)}{self._close}"

    def encode(self, rendered: str, encode: Callable[[str, bool], list[int]]) -> list[int]:
        """Token ids of a rendered template: its own control tokens, and what stands between them as plain text.

        Args:
            rendered: what the template made of marked messages.
            encode: text without marks to ids; and whether names in it are text.

        Raises:
            DGemmaError: a name that this vocabulary cannot write as text.
        """
        control = self.tokenizer.control_tokens
        ids: list[int] = []
        for part in re.split(f"({self._pattern.pattern})", rendered):
            if part in control:
                ids.append(control[part])
            elif self._open in part:
                text = re.sub(f"{self._open}(\\d+){self._close}", lambda m: self._names[int(m[1])], part)
                ids += self._checked(text, encode(text, True))
            elif part:
                ids += encode(part, False)
        return ids

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        if not set(ids).isdisjoint(self.tokenizer.control_tokens.values()):
            name = self._pattern.search(text)
            shown = name[0] if name else text
            raise DGemmaError(f"the messages have {shown!r}, which this checkpoint's vocabulary cannot write as text")
        return ids


def _pattern(control: Mapping[str, int]) -> re.Pattern[str]:
    longest_first = sorted(control, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _texts(value: object) -> Iterator[str]:
    """Every text in JSON values, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts([key, item])


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """JSON values with every text changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key) if isinstance(key, str) else key: _mapped(item, change) for key, item in value.items()}
    return value
