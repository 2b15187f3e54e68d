"""A place in a text that is read as JSON, and how what was read is spelled."""

import json
from dataclasses import dataclass, field, replace

from mlx_dgemma.text.grammar import spelled

Path = tuple[str | int, ...]
SPACE = " \t\r\n"
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Stop(Exception):
    """Nothing more of the text can be read; what may come next: see `jsontext.Read`."""

    def __init__(
        self, options: tuple[str, ...] = (), *, is_free: bool = False, in_string: bool = False, is_layout: bool = False
    ):
        self.options, self.is_free, self.in_string, self.is_layout = options, is_free, in_string, is_layout


@dataclass
class Cursor:
    """Where reading is.

    Attributes:
        text: what is read; what turned out to be no answer is cut off.
        ended: whether the model ended where the text does.
        can_escape: whether a backslash can be spelled.
        at: the next character.
        out: what was read, as it is spelled.
        starts: where each value begins in `out`.
        is_broken: whether something was cut off.
        number_ended: whether `out` ends in a number that cannot go on.
    """

    text: str
    ended: bool
    can_escape: bool
    at: int = 0
    out: str = ""
    starts: dict[Path, int] = field(default_factory=dict)
    is_broken: bool = False
    number_ended: bool = False

    def copy(self) -> "Cursor":
        """Another one at the same place."""
        return replace(self, starts=dict(self.starts))

    def become(self, other: "Cursor") -> None:
        """Goes where another one is."""
        vars(self).update(vars(other))

    @property
    def rest(self) -> str:
        """What was not read."""
        return self.text[self.at :]

    @property
    def next(self) -> str:
        """The next character, "" at the end."""
        return self.text[self.at : self.at + 1]

    def skip(self) -> str:
        """Passes white space; the next character."""
        while self.next and self.next in SPACE:
            self.at += 1
        return self.next

    def take(self, character: str, spelling: str | None = None) -> bool:
        """Passes white space and a character, if it is the next one."""
        if self.skip() != character:
            return False
        self.at += 1
        self.emit(character if spelling is None else spelling)
        return True

    def emit(self, text: str) -> None:
        """Adds to what was read."""
        self.out, self.number_ended = self.out + text, False

    def stop(self, stop: Stop) -> Stop:
        """Cuts off what follows, which is no answer: it is as if the text ended here, and were open."""
        self.is_broken = self.is_broken or bool(self.rest)
        self.text, self.ended = self.text[: self.at], False
        return stop

    def characters(self, most: int | None) -> tuple[str, bool]:
        """What a string holds, as far as it goes or one character further than `most`; whether it is closed."""
        written = list[str]()
        while self.next and (most is None or len(written) <= most):
            character, length = self._character()
            if length == 0:
                self.stop(Stop())
                return "".join(written), False
            self.at += length
            if character == "":
                return "".join(written), True
            written.append(character)
        return "".join(written), self.ended and not self.next

    def _character(self) -> tuple[str, int]:
        """The next character of a string and how many spell it: 0 if it is none; "" is the closing quote."""
        character = self.next
        if character == '"':
            return "", 1
        if character == "\ufffd" or (not self.can_escape and (character < " " or character == "\\")):
            return "", 0
        if character != "\\":
            return character, 1
        escape = self.text[self.at + 1 : self.at + 2]
        if escape in _ESCAPES:
            return _ESCAPES[escape], 2
        for length in (6, 12):  # a character, or two halves of one
            try:
                decoded = json.loads(f'"{self.text[self.at : self.at + length]}"') if escape == "u" else ""
            except ValueError:
                continue
            if len(decoded) == 1 and not "\ud800" <= decoded <= "\udfff":
                return decoded, length
        return "", 0


def inside(written: str) -> str:
    """What a string holds, as JSON spells it between its quotes."""
    return spelled(written)[1:-1]
