"""Tools as clients send them, in the form that chat templates print: names, descriptions and plain schemas.

A template knows type, description, enum, properties, required, items and nullable. What a `$ref` names is put in its
place, `anyOf` with null becomes nullable; alternatives that no template can print are told in the description.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_dgemma.errors import DGemmaError

Schema = dict[str, Any]
DEPTH = 32  # of a schema; what nests deeper refers to itself, or nobody could fill it in
SIZE = 20_000  # schemas in a schema with its references in place
ANY = "any"  # some clients' word for all of them
TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")


def normalised_tools(tools: object) -> list[Schema]:
    """The tools as [{"type": "function", "function": {"name", "description", "parameters"}}].

    Raises:
        DGemmaError: not a list of tools, a tool without a name, two of one name, a schema that is none or that
            refers to itself.
    """
    if not isinstance(tools, list | tuple):
        raise DGemmaError(f"tools are a {type(tools).__name__}; give a list of function schemas")
    made: dict[str, Schema] = {}
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, dict):
            raise DGemmaError(f"tool {number} is a {type(tool).__name__}; give a function schema")
        if tool.get("type", "function") != "function":
            raise DGemmaError(f"tool {number} is of type {tool['type']!r}; only functions are supported")
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise DGemmaError(f"tool {number} has no name")
        if name in made:
            raise DGemmaError(f"tool {number}: the name {name!r} is taken; give each tool a name of its own")
        description = function.get("description")
        if description is not None and not isinstance(description, str):
            raise DGemmaError(f"tool {name!r}: the description is no text")
        declared: Schema = {"name": name, "description": description or ""}
        if function.get("parameters"):
            declared["parameters"] = _parameters(function["parameters"], f"tool {name!r}")
        made[name] = {"type": "function", "function": declared}
    return list(made.values())


def types_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Schema]:
    """The parameters of each tool by name, with the type `any` where a schema leaves several open."""
    names = [tool["function"]["name"] for tool in normalised_tools(tools)]
    schemas = [tool.get("function", tool).get("parameters") or {} for tool in tools]
    plain = [_Plain(own, f"tool {name!r}", is_told=False).whole() for name, own in zip(names, schemas, strict=True)]
    return dict(zip(names, plain, strict=True))


def _parameters(schema: object, where: str) -> Schema:
    plain = plain_schema(schema, where)
    if plain["type"] != "object":
        raise DGemmaError(f"{where}: the parameters are of type {plain['type']!r}; give an object's schema")
    return plain


def plain_schema(schema: object, where: str) -> Schema:
    """A schema with what it refers to in its place, and one type in every part of it.

    Raises:
        DGemmaError: see `normalised_tools`; the message begins with `where`.
    """
    return _Plain(schema, where).whole()


class _Plain:
    """Makes one schema plain."""

    def __init__(self, root: object, where: str, *, is_told: bool = True):
        """`is_told`: several types become the first, and a word; otherwise the type `any`."""
        self.root, self.where, self.is_told, self.parts = root, where, is_told, 0

    def whole(self) -> Schema:
        """The schema, plain."""
        return self.part(self.root, self.where, 0)

    def part(self, schema: object, place: str, depth: int) -> Schema:
        """A part of the schema, plain; `place` names it in errors."""
        self.parts += 1
        if depth > DEPTH or self.parts > SIZE:
            raise self._endless()
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise DGemmaError(f"{place}: the schema is a {type(schema).__name__}; give an object")
        own = self._one_type(self._resolved(schema, place, depth), place)
        if own["type"] == "object":
            own["properties"] = self._properties(own.get("properties"), place, depth)
            own["required"] = _names(own.get("required"), own["properties"], place)
        elif own["type"] == "array" and isinstance(own.get("items"), dict):
            own["items"] = self.part(own["items"], f"{place}[]", depth + 1)
        return {key: value for key, value in own.items() if value not in ([], None) or key == "properties"}

    def _properties(self, properties: object, place: str, depth: int) -> Schema:
        if properties is None:
            return {}
        if not isinstance(properties, dict) or any(not isinstance(name, str) for name in properties):
            raise DGemmaError(f"{place}: properties are no object")
        return {name: self.part(own, f"{place}.{name}", depth + 1) for name, own in properties.items()}

    def _resolved(self, schema: Schema, place: str, depth: int) -> Schema:
        """The schema with references and unions at its top put in place."""
        for _ in range(DEPTH - depth):
            if "$ref" in schema:
                schema = {**referred(self.root, schema["$ref"], place), **_without(schema, "$ref")}
            elif key := next((key for key in ("anyOf", "oneOf") if key in schema), None):
                schema = self._united(schema, key, place, depth)
            elif "allOf" in schema:
                parts = [self._resolved(_mapping(p, place), place, depth + 1) for p in _list(schema["allOf"], place)]
                schema = merged([*parts, _without(schema, "allOf")])
            else:
                return _without(schema, "$defs", "definitions", "$schema")
        raise self._endless()

    def _endless(self) -> DGemmaError:
        return DGemmaError(f"{self.where}: the schema refers to itself, or is too deep; give one that ends")

    def _united(self, schema: Schema, key: str, place: str, depth: int) -> Schema:
        """One schema for several: nullable for one beside null; otherwise the first, the others told in words."""
        parts = [self._resolved(_mapping(p, place), place, depth + 1) for p in _list(schema[key], place)]
        nullable = any(part.get("type") == "null" for part in parts)
        parts = [part for part in parts if part.get("type") != "null"] or [{"type": "null"}]
        rest = _without(schema, key)
        if nullable:
            rest["nullable"] = True
        if len(parts) == 1:
            return merged([parts[0], rest])
        if all(set(part) <= {"enum", "const", "type"} and ("enum" in part or "const" in part) for part in parts):
            return {**rest, "enum": [value for part in parts for value in part.get("enum", [part.get("const")])]}
        if not self.is_told:
            return {**rest, "type": ANY}
        chosen = next((part for part in parts if part.get("type") == "string"), parts[0])
        return _told(merged([chosen, rest]), "one of: " + ", ".join(_shortly(part) for part in parts))

    def _one_type(self, schema: Schema, place: str) -> Schema:
        """The schema with exactly one type."""
        if not isinstance(schema.get("description") or "", str):
            raise DGemmaError(f"{place}: the description is no text")
        kind = schema.get("type")
        kinds = list(kind) if isinstance(kind, list) else [] if kind is None else [kind]
        if any(not isinstance(k, str) or k.lower() not in (*TYPES, ANY) for k in kinds):
            raise DGemmaError(f"{place}: {kind!r} is no type; use one of {', '.join(TYPES)}")
        made = {**schema, "enum": [schema["const"]]} if "const" in schema else dict(schema)
        made.pop("const", None)
        kinds = [k.lower() for k in kinds] or [_guessed(made)]
        if "null" in kinds and len(kinds) > 1:
            kinds.remove("null")
            made["nullable"] = True
        if len(kinds) > 1:
            made = _told(made, "one of: " + ", ".join(kinds))
            kinds = [ANY] if not self.is_told else ["string"] if "string" in kinds else kinds
        made["type"] = "string" if self.is_told and kinds[0] == ANY else kinds[0]
        return _with_values(made) if isinstance(made.get("enum"), list) else made


def _with_values(schema: Schema) -> Schema:
    """A schema with an enum, as templates print it."""
    values = schema["enum"]
    if None in values and len(values) > 1:
        values = [value for value in values if value is not None]
        schema = {**schema, "enum": values, "nullable": True}
    if schema["type"] == "string":
        return schema
    return _told(schema, "one of: " + ", ".join(map(json.dumps, values)))  # templates print those of a text only


def _guessed(schema: Schema) -> str:
    """The type of a schema that names none."""
    if "properties" in schema:
        return "object"
    if "items" in schema:
        return "array"
    values = schema.get("enum")
    first = values[0] if isinstance(values, list) and values else ""
    kinds = {bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
    return kinds.get(type(first), "string")


def _told(schema: Schema, what: str) -> Schema:
    """The schema, with what no template prints in its description."""
    said = schema.get("description")
    return {**schema, "description": f"{said} ({what})" if said else what}


def _shortly(schema: Schema) -> str:
    kind = schema.get("type", _guessed(schema))
    named = f" {{{', '.join(schema['properties'])}}}" if isinstance(schema.get("properties"), dict) else ""
    return f"{kind}{named}"


def referred(root: object, reference: object, place: str) -> Schema:
    """The schema inside of `root` that a `$ref` names; errors name the `place` of the reference."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise DGemmaError(f"{place}: $ref {reference!r} is not inside the schema; put what it names in its place")
    found = root
    for name in reference.split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise DGemmaError(f"{place}: $ref {reference!r} names nothing")
    return found


def merged(parts: Sequence[Schema]) -> Schema:
    """One schema that asks for all of them."""
    made: Schema = {}
    for part in parts:
        both: Schema = {}
        if isinstance(made.get("properties"), dict) and isinstance(part.get("properties"), dict):
            both["properties"] = {**made["properties"], **part["properties"]}
        if isinstance(made.get("required"), list) and isinstance(part.get("required"), list):
            both["required"] = list(dict.fromkeys([*made["required"], *part["required"]]))
        made = {**made, **part, **both}
    return made


def _names(required: object, properties: Schema, place: str) -> list[str]:
    if required is None or isinstance(required, bool):  # a boolean is draft 3's
        return []
    if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
        raise DGemmaError(f"{place}: required is no list of names")
    return [name for name in required if name in properties]


def _mapping(part: object, place: str) -> Schema:
    if not isinstance(part, dict):
        raise DGemmaError(f"{place}: a part of the schema is a {type(part).__name__}; give an object")
    return part


def _list(parts: object, place: str) -> list[object]:
    if not isinstance(parts, list) or not parts:
        raise DGemmaError(f"{place}: alternatives are no list of schemas")
    return parts


def _without(schema: Schema, *keys: str) -> Schema:
    return {key: value for key, value in schema.items() if key not in keys}
