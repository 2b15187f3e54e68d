"""JSON schemas as what an answer may consist of: fixed texts, strings, numbers, objects, arrays, alternatives.

What a schema refers to is put in its place. What narrows whole objects and arrays (`not`, `dependentRequired`,
`contains` …) is no part of a grammar: `formats` checks it in the end.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.patterns import check_pattern
from mlx_dgemma.text.tools import DEPTH, SIZE, TYPES, Schema, merged, referred


@dataclass(frozen=True)
class Literals:
    """One of some values, as JSON."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class String:
    """A string of `least` to `most` characters; `schema` may ask for more."""

    least: int = 0
    most: int | None = None
    schema: Schema = field(default_factory=dict)


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, without those bounds in `but`; a multiple of `multiple` if it is an integer.

    `schema` may ask for more.
    """

    is_integer: bool = False
    low: float = -math.inf
    high: float = math.inf
    but: frozenset[float] = frozenset()
    multiple: int = 1
    schema: Schema = field(default_factory=dict)


@dataclass(frozen=True)
class Object:
    """Keys in their order, those in `required` always; then, if `extra` is something, others of that kind."""

    properties: tuple[tuple[str, "Node"], ...] = ()
    required: frozenset[str] = frozenset()
    extra: "Node | None" = None
    least: int = 0
    most: int | None = None


@dataclass(frozen=True)
class Array:
    """`first` items, then others of one kind; None allows no others."""

    items: "Node | None"
    first: tuple["Node", ...] = ()
    least: int = 0
    most: int | None = None
    is_set: bool = False

    def item(self, index: int) -> "Node | None":
        """What stands at a place."""
        if self.most is not None and index >= self.most:
            return None
        return self.first[index] if index < len(self.first) else self.items


@dataclass(frozen=True)
class Anything:
    """Any value."""


@dataclass(frozen=True)
class Union:
    """One of several."""

    nodes: tuple["Node", ...]


Node = Literals | String | Number | Object | Array | Anything | Union
NULL, BOOLEAN, ANY_OBJECT = Literals(("null",)), Literals(("true", "false")), Object(extra=Anything())


def grammar(schema: Schema, where: str) -> Node:
    """What answers to a schema consist of.

    Raises:
        DGemmaError: what is no schema, refers to itself or elsewhere, or allows nothing; begins with `where`.
    """
    return _Grammar(schema, where).node(schema, where, 0)


def fixed_texts(node: Node) -> Iterator[str]:
    """Every text that an answer may have to hold: values, and keys."""
    match node:
        case Literals():
            yield from node.texts
        case Object():
            for name, own in node.properties:
                yield f"{spelled(name)}: "
                yield from fixed_texts(own)
            if node.extra is not None:
                yield from fixed_texts(node.extra)
        case Array():
            for own in (*node.first, *([] if node.items is None else [node.items])):
                yield from fixed_texts(own)
        case Union():
            for own in node.nodes:
                yield from fixed_texts(own)


class _Grammar:
    """Makes one."""

    def __init__(self, root: Schema, where: str):
        self.root, self.where, self.parts = root, where, 0

    def node(self, schema: object, place: str, depth: int) -> Node:
        self.parts += 1
        if depth > DEPTH or self.parts > SIZE:
            raise DGemmaError(f"{self.where}: the schema refers to itself, or is too deep; give one that ends")
        if schema is True:
            return Anything()
        if not isinstance(schema, dict):
            raise DGemmaError(f"{place}: the schema is {schema!r}; give an object")
        if "$ref" in schema:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return self.node({**referred(self.root, schema["$ref"], place), **rest}, place, depth + 1)
        if "allOf" in schema:
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            parts = [self._open(part, place, depth) for part in self._list(schema, "allOf", place)]
            return self.node(merged([*parts, rest]), place, depth + 1)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {name: value for name, value in schema.items() if name != key}
                parts = [self._open(part, place, depth) for part in self._list(schema, key, place)]
                nodes = [self.node(merged([rest, part]), place, depth + 1) for part in parts]
                return Union(tuple(nodes)) if len(nodes) > 1 else nodes[0]
        return self._plain(schema, place, depth)

    def _open(self, part: object, place: str, depth: int) -> Schema:
        """A part of a union, with what it refers to at its top."""
        for _ in range(DEPTH - depth):
            if not isinstance(part, dict):
                raise DGemmaError(f"{place}: an alternative is {part!r}; give a schema")
            if "$ref" not in part:
                return part
            part = {**referred(self.root, part["$ref"], place), **{k: v for k, v in part.items() if k != "$ref"}}
        raise DGemmaError(f"{self.where}: the schema refers to itself, or is too deep; give one that ends")

    def _plain(self, schema: Schema, place: str, depth: int) -> Node:
        """Without references and alternatives."""
        if "const" in schema:
            return Literals((spelled(schema["const"]),))
        if "enum" in schema:
            values = self._list(schema, "enum", place)
            return Literals(tuple(dict.fromkeys(map(spelled, values))))
        kinds = schema.get("type") or _guessed(schema)
        kinds = kinds if isinstance(kinds, list) else [kinds]
        for kind in kinds:
            if kind not in TYPES:
                raise DGemmaError(f"{place}: {kind!r} is no type; use one of {', '.join(TYPES)}")
        nodes = [self._typed(kind, schema, place, depth) for kind in kinds]
        return Union(tuple(nodes)) if len(nodes) > 1 else nodes[0] if nodes else Anything()

    def _typed(self, kind: str, schema: Schema, place: str, depth: int) -> Node:
        if kind == "string":
            if "pattern" in schema:
                check_pattern(schema["pattern"], place)
            least, most = _bounds(schema, "Length", place)
            return String(least, most, schema)
        if kind in ("number", "integer"):
            return _number(schema, kind == "integer", place)
        if kind == "object":
            return self._object(schema, place, depth)
        if kind == "array":
            return self._array(schema, place, depth)
        return NULL if kind == "null" else BOOLEAN

    def _object(self, schema: Schema, place: str, depth: int) -> Node:
        own = schema.get("properties") or {}
        required = schema.get("required") or []
        if not isinstance(own, dict):
            raise DGemmaError(f"{place}: properties are no object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise DGemmaError(f"{place}: required is no list of names")
        least, most = _bounds(schema, "Properties", place)
        extra: object = schema.get("additionalProperties", not own)
        made = [
            (name, self.node(part, f"{place}.{name}", depth + 1)) for name, part in own.items() if part is not False
        ]
        others = None if extra is False or (extra is True and own) else self.node(extra, f"{place}.*", depth + 1)
        missing = [name for name in required if name not in dict(made)]
        if missing and others is None:
            raise DGemmaError(f"{place}: {missing[0]!r} is required, and no property; say what it is")
        made += [(name, others) for name in missing if others is not None]
        return Object(tuple(made), frozenset(required), others, least, most)

    def _array(self, schema: Schema, place: str, depth: int) -> Node:
        first = self._list(schema, "prefixItems", place) if "prefixItems" in schema else []
        made = tuple(self.node(part, f"{place}[{i}]", depth + 1) for i, part in enumerate(first))
        rest = schema.get("items", True)
        items = None if rest is False else self.node(rest, f"{place}[]", depth + 1)
        least, most = _bounds(schema, "Items", place)
        if items is None and least > len(made):
            raise DGemmaError(f"{place}: at least {least} items are asked for, and {len(made)} described")
        return Array(items, made, least, most, schema.get("uniqueItems") is True)

    @staticmethod
    def _list(schema: Schema, key: str, place: str) -> list[Any]:
        parts = schema[key]
        if not isinstance(parts, list) or not parts:
            raise DGemmaError(f"{place}: {key} is no list")
        return parts


def spelled(value: object) -> str:
    """A value as JSON, as answers are written."""
    return json.dumps(value, ensure_ascii=False)


def _guessed(schema: Mapping[str, Any]) -> list[str]:
    """The types of a schema that names none; all of them have no word."""
    words = {
        "object": ("properties", "required", "additionalProperties"), "array": ("items", "prefixItems"),
        "string": ("pattern", "minLength", "maxLength", "format"), "number": ("minimum", "maximum", "multipleOf"),
    }  # fmt: skip
    return [kind for kind, keys in words.items() if any(key in schema for key in keys)]


def _bounds(schema: Schema, what: str, place: str) -> tuple[int, int | None]:
    """How many there have to be, and how many there may be."""
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    for name, count in ((f"min{what}", least), (f"max{what}", most)):
        if count is not None and (type(count) not in (int, float) or count != int(count) or count < 0):
            raise DGemmaError(f"{place}: {name} is {count!r}; give a count")
    if most is not None and least > most:
        raise DGemmaError(f"{place}: min{what} {least} is more than max{what} {most}")
    return int(least), None if most is None else int(most)


def _number(schema: Schema, is_integer: bool, place: str) -> Number:
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        value = schema.get(key)
        if value is not None and type(value) not in (int, float):
            raise DGemmaError(f"{place}: {key} is {value!r}; give a number")
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if is_integer:
        low = math.ceil(low) if math.isfinite(low) else low
        high = math.floor(high) if math.isfinite(high) else high
        low = low if above is None else max(low, math.floor(above) + 1)
        high = high if below is None else min(high, math.ceil(below) - 1)
    else:
        low = low if above is None else max(low, above)
        high = high if below is None else min(high, below)
    but = frozenset(bound for bound in (above, below) if bound is not None and not is_integer)
    if low > high or (low == high and low in but):
        raise DGemmaError(f"{place}: no number is from {low} to {high}")
    multiple = schema.get("multipleOf", 1)
    if multiple <= 0:
        raise DGemmaError(f"{place}: multipleOf is {multiple!r}; give a number above 0")
    return Number(is_integer, low, high, but, int(multiple) if multiple == int(multiple) else 1, schema)
