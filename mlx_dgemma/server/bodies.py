"""Bodies of requests: JSON read within limits, and fields taken from it by type; every error names its place."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NoReturn

from mlx_dgemma.server.errors import Refused
from mlx_dgemma.text.messages import IMAGES

DEPTH = 64  # of objects and arrays in a body
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # a body is UTF-8, so only an escape can be one
HALVES = re.compile("[\ud800-\udfff]")
LIST = 10_000  # entries of a list of messages, tools …


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        Refused: what is none, numbers that JSON does not have, what nests too deep.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Refused(400, f"the body nests deeper than {DEPTH}") from None
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a {_kind(value)}; give an object")
    _check_depth(value)
    if HALF.search(body) and HALVES.search(json.dumps(value, ensure_ascii=False)):
        raise Refused(400, "the body has half of a surrogate pair, which is no character; leave it out")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise Refused(400, f"the body nests deeper than {DEPTH}")


class Fields:
    """Fields of an object; null is as good as absent."""

    def __init__(self, value: object, place: str = ""):
        """`place` names the object in errors, "" for the whole body."""
        if not isinstance(value, dict):
            raise Refused(400, f"{place or 'the body'} is a {_kind(value)}; give an object", param=place or None)
        self.values, self.place = value, place

    def at(self, name: str) -> str:
        """The place of a field."""
        return f"{self.place}.{name}" if self.place else name

    def wrong(self, name: str, wanted: str) -> Refused:
        """That a field is not what it has to be."""
        shown = self.values.get(name)
        what = f"{shown!r}"[:40] if isinstance(shown, str | int | float | bool) else _kind(shown)
        return Refused(400, f"{self.at(name)} is {what}; give {wanted}", param=self.at(name))

    def text(self, name: str) -> str | None:
        """A text."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def flag(self, name: str) -> bool | None:
        """True or false."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(self, name: str, low: int | None = None, high: int | None = None) -> int | None:
        """A whole number in bounds."""
        value = self.values.get(name)
        if value is None:
            return None
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not is_whole or (low is not None and value < low) or (high is not None and value > high):
            bounds = "" if low is None else f" from {low} on" if high is None else f" from {low} to {high}"
            raise self.wrong(name, f"a whole number{bounds}")
        return int(value)

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number in bounds."""
        value = self.values.get(name)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # infinities and NaN are in no bounds
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def fields(self, name: str, known: Collection[str] | None = None) -> Fields | None:
        """An object; with `known`, one without other fields than these."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        own = Fields(value, self.at(name))
        strange = [] if known is None else [key for key in value if key not in known]
        if strange:
            raise Refused(
                400, f"{own.at(strange[0][:40])} is unknown; known are {', '.join(known or ())}", param=own.place
            )
        return own

    def items(self, name: str, most: int = LIST) -> list[Any] | None:
        """A list."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > most:
            raise (
                self.wrong(name, f"a list of at most {most}")
                if not isinstance(value, list)
                else Refused(400, f"{self.at(name)} has {len(value)} entries; give at most {most}", param=self.at(name))
            )
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """A list of texts, or one; those that are empty say nothing."""
        value = self.values.get(name)
        found = [value] if isinstance(value, str) else self.items(name, most) or []
        if not all(isinstance(own, str) for own in found):
            raise self.wrong(name, "a text or a list of texts")
        return [own for own in found if own]


def texts_of(content: object, place: str, kinds: Collection[str] = ("text",)) -> list[str]:
    """The texts of a content: one, or a list of parts of these kinds.

    Raises:
        Refused: anything else, by its kind.
    """
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise Refused(400, f"{place} is no text and no list of parts", param=place)
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else _kind(part)
        is_text = isinstance(part, dict) and isinstance(kind, str) and kind in kinds
        if not is_text or not isinstance(part.get("text"), str):
            also = ", and images of users and tools" if isinstance(kind, str) and kind in IMAGES else ""
            told = f"{place}: content of type {str(kind)[:40]!r} is not supported, only text is{also}"
            raise Refused(400, told, param=place)
    return [part["text"] for part in content]


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number").removeprefix("a ").removeprefix("an ")
