"""The values of a tool call, read leniently: `{city:<|"|>Oslo<|"|>,days:[1,2],x:null}`, and what models make of it.

Strings stand between two quote tokens, in JSON's or Python's quotes, or bare; keys are bare or quoted; a call may have
parentheses. A tool's schema decides types, and not the spelling: see `coerced`.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Value = Any  # what JSON has, and Bare
DEPTH = 64  # of containers; what is deeper stays text
_HEAD = re.compile(r"\s*(?:call\s*:)?\s*([^\s{(]+)\s*")
_KEY_BEFORE = re.compile(r"(.*),\s*([\w.$\-]+)\s*:\s*", re.DOTALL)
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_NUMBER = re.compile(r"-?\d{1,300}(\.\d{1,300})?([eE][+-]?\d{1,4})?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Bare(str):
    """A value without quotes, as it was spelled."""


@dataclass(frozen=True)
class Call:
    """A call as it was written: its name, and arguments before a schema had its say."""

    name: str
    arguments: dict[str, Value]


def read_call(text: str, quote: str, *, is_cut: bool = False) -> Call | None:
    """A call's text, in which `quote` stands for the quote token; None if it has no name.

    With `is_cut` the text ends where the budget did: an argument that is unfinished there is left out. Otherwise the
    end of the text finishes what is open.
    """
    if text.lstrip().startswith("{"):  # JSON, as other models write a call
        return _named(dict(_Reader(text, quote, is_cut).arguments()))
    head = _HEAD.match(text)
    if head is None:
        return None
    return Call(head[1], dict(_Reader(text[head.end() :], quote, is_cut).arguments()))


def _named(fields: dict[str, Value]) -> Call | None:
    name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters", {}))
    return Call(str(name), arguments if isinstance(arguments, dict) else {}) if name else None


class _Reader:
    """Reads one call from where its brackets open."""

    def __init__(self, text: str, quote: str, is_cut: bool):
        self.text, self.quote, self.is_cut = text, quote, is_cut
        self.at = self.depth = 0

    def arguments(self) -> list[tuple[str, Value]]:
        """The finished arguments."""
        if not self.text[:1] or self.text[0] not in "{(":
            return []
        self.at = 1
        return [(key, value) for key, value, done in self._pairs()[0] if done or not self.is_cut]

    def _pairs(self) -> tuple[list[tuple[str, Value, bool]], bool]:
        """Keys, values and whether they are finished, up to a closing bracket; and whether there was one."""
        self.depth += 1
        pairs: list[tuple[str, Value, bool]] = []
        while (c := self._next(" \t\r\n,;")) and c not in "}])":
            key = self._key()
            if key is not None:
                pairs.append((key, *self._value()))
        self.at, self.depth = self.at + 1, self.depth - 1
        return pairs, bool(c)

    def _items(self) -> tuple[list[Value], bool]:
        self.depth += 1
        items: list[Value] = []
        while (c := self._next(" \t\r\n,;")) and c not in "}])":
            items.append(self._value()[0])
        self.at, self.depth = self.at + 1, self.depth - 1
        return items, bool(c)

    def _next(self, skipped: str) -> str:
        """The next character that is none of these, "" at the end."""
        while self.at < len(self.text) and self.text[self.at] in skipped:
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _key(self) -> str | None:
        """A key and the colon behind it; None, and past it, for a piece that has none."""
        if self.text[self.at] in (self.quote, '"', "'"):
            key, _ = self._quoted(self.text[self.at])
            if self._next(" \t\r\n") not in (":", "="):
                return None
            self.at += 1
            return key
        found = re.compile(r"[:=,}\])]").search(self.text, self.at)
        end = found.start() if found else len(self.text)
        key, self.at = self.text[self.at : end].strip(), end
        if found is None or found[0] not in ":=":
            return None
        self.at += 1
        return key

    def _value(self) -> tuple[Value, bool]:
        """A value, and whether it is finished."""
        c = self._next(" \t\r\n")
        if not c:
            return None, False
        if c == self.quote:
            return self._string()
        if c in "\"'":
            return self._quoted(c)
        if c in "{[" and self.depth < DEPTH:
            self.at += 1
            if c == "[":
                return self._items()
            pairs, done = self._pairs()
            return {key: value for key, value, _ in pairs}, done
        return self._bare()

    def _string(self) -> tuple[str, bool]:
        """Between two quote tokens; the second may be missing, or may in truth open the next value."""
        start = self.at + 1
        end = self.text.find(self.quote, start)
        if end < 0:
            rest, self.at = self.text[start:], len(self.text)
            return (rest, False) if self.is_cut else (self._without_brackets(rest), True)
        self.at = end + 1
        following = self._next(" \t\r\n")
        lost = _KEY_BEFORE.fullmatch(self.text, start, end)
        if following and following not in ",}])" and lost:
            self.at = lost.start(2)
            return lost[1], True
        return self.text[start:end], True

    def _without_brackets(self, text: str) -> str:
        """Without the brackets at the end that close what is open."""
        for _ in range(self.depth):
            stripped = text.rstrip()
            if not stripped or stripped[-1] not in "}])":
                break
            text = stripped[:-1]
        return text

    def _quoted(self, mark: str) -> tuple[str, bool]:
        """A string in JSON's or Python's quotes, or between quote tokens."""
        start = at = self.at + 1
        while at < len(self.text) and self.text[at] != mark:
            at += 2 if self.text[at] == "\\" and mark != self.quote else 1
        inner, self.at = self.text[start:at], min(at + 1, len(self.text))
        is_done = at < len(self.text)
        if mark == self.quote:
            return inner, is_done
        if mark == '"':
            try:
                return json.loads(f'"{inner}"', strict=False), is_done
            except ValueError:
                return inner, is_done
        return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), inner, flags=re.DOTALL), is_done

    def _bare(self) -> tuple[Value, bool]:
        """Up to the next comma or closing bracket; or to a quote token whose partner was left out."""
        found = re.compile(r"[,}\])]").search(self.text, self.at)
        end = found.start() if found else len(self.text)
        closing = self.text.find(self.quote, self.at)
        if closing >= 0 and self.text.count(self.quote, self.at) % 2 and self._ends_value(closing + 1):
            value, self.at = self.text[self.at : closing], closing + 1
            return value, True
        value, self.at = self.text[self.at : end].strip(), end
        return Bare(value), found is not None

    def _ends_value(self, at: int) -> bool:
        return re.compile(r"\s*([}\])]|,\s*[\w.$\-]+\s*[:=]|$)").match(self.text, at) is not None


def plain(value: Value) -> Any:
    """A value as JSON has it: bare words by their look."""
    if isinstance(value, Bare):
        if value in _WORDS:
            return _WORDS[value]
        number = _number(value)
        return str(value) if number is None else number
    if isinstance(value, dict):
        return {key: plain(own) for key, own in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _number(text: str) -> int | float | None:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    if found[1] is None and found[2] is None:
        return int(text)
    number = float(text)
    return number if math.isfinite(number) else None


def coerced(value: Value, schema: Schema | None) -> Any:
    """A value in the type that its schema names (`tools.plain_schema`); as it was written where that cannot be.

    Numbers and truth values may have been written as text, texts as bare words, containers as JSON in a string.
    """
    schema = schema or {}
    kind = schema.get("type", "any")
    if isinstance(value, Bare) and kind == "string":
        return None if value in ("null", "None") else str(value)
    if isinstance(value, str) and kind in ("boolean", "integer", "number", "null"):
        return _scalar(value, kind)
    if isinstance(value, str) and kind in ("array", "object"):
        value = _container(value, list if kind == "array" else dict)
    if isinstance(value, dict) and kind == "object":
        known = schema.get("properties") or {}
        return {key: coerced(own, known.get(key)) for key, own in value.items()}
    if isinstance(value, list) and kind == "array":
        return [coerced(item, schema.get("items")) for item in value]
    return plain(value)


def _scalar(text: str, kind: str) -> Any:
    """A text that should be a truth value, a number or null."""
    word = text.strip()
    if kind == "boolean" and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if kind in ("integer", "number"):
        number = _number(word)
        if number is not None and (kind == "number" or number == int(number)):
            return int(number) if kind == "integer" else number
    if word in ("null", "None") and (kind == "null" or isinstance(text, Bare)):
        return None
    return plain(text)


def _container(text: str, kind: type) -> Value:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return read if isinstance(read, kind) else text
