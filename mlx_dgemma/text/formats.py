"""What form an answer has to have: OpenAI's `response_format`, as a grammar, a word to the model, and a last check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.text.grammar import ANY_OBJECT, Node, Number, String, grammar
from mlx_dgemma.text.patterns import LONGEST, check_pattern
from mlx_dgemma.text.tools import DEPTH, Schema, referred

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from mlx_dgemma.text.messages import Message

WHERE = "response_format"
LEFT = frozenset(
    ("pattern", "format", "not", "if", "multipleOf", "exclusiveMinimum", "exclusiveMaximum")
)  # to the check
ELSEWHERE = ("$dynamicRef", "$recursiveRef")


@dataclass(frozen=True, eq=False)
class Format:
    """The form of an answer.

    Attributes:
        node: its grammar.
        schema: a JSON schema; None allows any object.
        is_strict: whether an answer of another form is an error.
    """

    node: Node
    schema: Schema | None
    is_strict: bool

    @property
    def told(self) -> str:
        """What the model is told."""
        if self.schema is None:
            return "Answer with a JSON object and nothing else."
        return f"Answer with JSON that follows this schema and with nothing else: {json.dumps(self.schema)}"

    @cached_property
    def _validator(self) -> Validator:
        from jsonschema import Draft202012Validator  # late: most runs need none

        checker = Draft202012Validator.FORMAT_CHECKER
        return Draft202012Validator({} if self.schema is None else self.schema, format_checker=checker)

    def allows(self, node: String | Number, value: object) -> bool:
        """Whether a string or number is one that its part of the schema allows."""
        if isinstance(value, str) and "pattern" in node.schema and len(value) > LONGEST:
            return False
        left = LEFT & node.schema.keys()
        return fits(node, value) and (not left or bool(self._validator.evolve(schema=node.schema).is_valid(value)))

    def fault(self, answer: str) -> tuple[str, tuple[str | int, ...]]:
        """What is wrong with an answer, and where: a path of keys and indices; "" if nothing is."""
        try:
            value = json.loads(answer)
        except ValueError:
            return "it is cut off", ()
        if self.schema is None:
            return ("" if isinstance(value, dict) else "it is no object"), ()
        errors = sorted(self._validator.iter_errors(value), key=lambda error: -len(error.absolute_path))
        return (first_line(errors[0]), tuple(errors[0].absolute_path)) if errors else ("", ())


def fits(node: String | Number, value: object) -> bool:
    """Whether a number is of its type and in its bounds; lengths of strings are the reader's."""
    if not isinstance(node, Number):
        return True
    if not isinstance(value, int | float) or (node.is_integer and not isinstance(value, int)):
        return False
    return math.isfinite(value) and node.low <= value <= node.high and value not in node.but


def place(path: tuple[str | int, ...]) -> str:
    """A path as it is written: `items[3].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the whole answer"


def format_of(response_format: Mapping[str, Any] | None) -> Format | None:
    """The form that a request asks for; None if it may have any.

    Raises:
        DGemmaError: none of OpenAI's forms, a schema that is none, refers to itself, or could take forever.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise DGemmaError(f"{WHERE} is a {type(response_format).__name__}; give an object with a type")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Format(ANY_OBJECT, None, False)
    if kind != "json_schema":
        raise DGemmaError(f"{WHERE}: the type is {kind!r}; use text, json_object or json_schema")
    about = response_format.get("json_schema", response_format)
    if not isinstance(about, Mapping) or not isinstance(about.get("schema"), dict):
        raise DGemmaError(f'{WHERE}: there is no schema; give {{"json_schema": {{"schema": …}}}}')
    strict = about.get("strict")
    if strict is not None and type(strict) is not bool:
        raise DGemmaError(f"{WHERE}: strict is {strict!r}; give true or false")
    schema = about["schema"]
    return Format(_grammar(schema), schema, bool(strict))


def _grammar(schema: Schema) -> Node:
    """The grammar of a schema that was looked at from end to end."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    where = f"{WHERE} schema"
    try:
        json.dumps(schema, allow_nan=False)
        _look(schema, schema, where, 0)
        node = grammar(schema, where)
        Draft202012Validator.check_schema(schema)
    except DGemmaError:
        raise
    except (TypeError, ValueError) as error:
        raise DGemmaError(f"{where} is no JSON: {first_line(error)}") from None
    except RecursionError:
        raise DGemmaError(f"{where} refers to itself, or is too deep; give one that ends") from None
    except SchemaError as error:
        raise DGemmaError(f"{where}: {place(tuple(error.absolute_path))}: {first_line(error)}") from None
    return node


def _look(part: object, root: Schema, where: str, depth: int) -> None:
    """Raises DGemmaError for references to elsewhere and for hostile patterns, anywhere."""
    if depth > 4 * DEPTH:
        raise RecursionError
    if isinstance(part, dict):
        _look_at(part, root, where)
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for own in inside:
        _look(own, root, where, depth + 1)


def _look_at(part: Schema, root: Schema, where: str) -> None:
    """Looks at one object in a schema, which may be a schema itself."""
    if isinstance(part.get("$ref"), str):
        referred(root, part["$ref"], where)
    elsewhere = next((key for key in ELSEWHERE if isinstance(part.get(key), str)), None)
    if elsewhere is not None:
        raise DGemmaError(f"{where}: {elsewhere} is not supported; put what it names in its place")
    patterns = part.get("patternProperties")
    for pattern in (part.get("pattern"), *(patterns if isinstance(patterns, dict) else ())):
        if isinstance(pattern, str):
            check_pattern(pattern, where)


def with_form(messages: list[Message], form: Format) -> list[Message]:
    """Messages in which the model is told the form, in the system's turn."""
    if not messages or messages[0]["role"] not in ("system", "developer"):
        return [{"role": "system", "content": form.told}, *messages]
    first = messages[0]
    return [{**first, "content": f"{first['content']}\n\n{form.told}"}, *messages[1:]]
