"""Tool schemas: what templates print, with nothing lost without a word."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma import DGemmaError
from mlx_dgemma.text.tools import normalised_tools, plain_schema, types_of
from tests.text.gemma import gemma_tokenizer

PLAIN = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "City", "enum": ["Oslo", "Rome"]},
        "days": {"type": "array", "items": {"type": "integer"}},
        "place": {"type": "object", "properties": {"x": {"type": "number", "nullable": True}}, "required": ["x"]},
    },
    "required": ["city"],
}


def tool(parameters, name="f", description="d"):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def refused(tools) -> str:
    with pytest.raises(DGemmaError) as error:
        normalised_tools(tools)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_a_template_prints_already_stays_as_it_is():
    tokenizer, messages = gemma_tokenizer(), [{"role": "user", "content": "x"}]
    raw, made = ([tool(PLAIN)], normalised_tools([tool(PLAIN)]))
    rendered = [tokenizer.apply_chat_template(messages, tools=tools) for tools in (raw, made)]
    assert rendered[0] == rendered[1] and 'city:{description:<|"|>City<|"|>' in rendered[0]


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"type": "integer", "nullable": True}),
        ({"oneOf": [{"const": "a"}, {"const": "b"}]}, {"type": "string", "enum": ["a", "b"]}),
        ({"enum": ["a", None]}, {"type": "string", "enum": ["a"], "nullable": True}),
        ({"const": 3}, {"type": "integer", "enum": [3], "description": "one of: 3"}),
        ({"type": "integer", "enum": [1, 2]}, {"type": "integer", "enum": [1, 2], "description": "one of: 1, 2"}),
        ({}, {"type": "string"}),
        (True, {"type": "string"}),
        ({"properties": {}}, {"type": "object", "properties": {}}),
        ({"items": {}}, {"type": "array", "items": {"type": "string"}}),
        ({"type": "OBJECT"}, {"type": "object", "properties": {}}),
        (
            {"description": "size", "anyOf": [{"type": "integer"}, {"type": "string"}]},
            {"type": "string", "description": "size (one of: integer, string)"},
        ),
        ({"type": ["integer", "boolean"]}, {"type": "integer", "description": "one of: integer, boolean"}),
        (
            {"allOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "number"}}}]},
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}},
        ),
    ],
)  # fmt: skip
def test_one_type_for_every_part(schema, plain):
    assert plain_schema(schema, "x") == plain


def test_references_are_put_in_place():
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n", "description": "mine"}, "b": {"items": {"$ref": "#/$defs/n"}}},
        "$defs": {"n": {"type": "integer", "description": "n"}},
    }
    assert plain_schema(schema, "x")["properties"] == {
        "a": {"type": "integer", "description": "mine"},
        "b": {"type": "array", "items": {"type": "integer", "description": "n"}},
    }


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ({"name": "f"}, "tools are a dict; give a list of function schemas"),
        ("f", "tools are a str"),
        ([3], "tool 1 is a int"),
        ([{"type": "web_search"}], "tool 1 is of type 'web_search'; only functions are supported"),
        ([{"type": "function"}], "tool 1 has no name"),
        ([tool({}), tool({})], "tool 2: the name 'f' is taken"),
        ([tool({}, description=3)], "tool 'f': the description is no text"),
        ([tool({"type": "string"})], "tool 'f': the parameters are of type 'string'; give an object's schema"),
        ([tool([1])], "tool 'f': the schema is a list; give an object"),
        ([tool({"properties": {"a": {"type": "text"}}})], "tool 'f'.a: 'text' is no type; use one of string"),
        ([tool({"properties": {"a": {"type": 3}}})], "tool 'f'.a: 3 is no type"),
        ([tool({"properties": [1]})], "tool 'f': properties are no object"),
        ([tool({"properties": {"a": {"items": {"anyOf": 3}}}})], "tool 'f'.a[]: alternatives are no list"),
        ([tool({"properties": {"a": {"anyOf": []}}})], "tool 'f'.a: alternatives are no list"),
        ([tool({"properties": {"a": {"allOf": [3]}}})], "tool 'f'.a: a part of the schema is a int"),
        ([tool({"properties": {"a": {"$ref": "other.json"}}})], "$ref 'other.json' is not inside the schema"),
        ([tool({"properties": {"a": {"$ref": "#/$defs/a"}}})], "tool 'f'.a: $ref '#/$defs/a' names nothing"),
        ([tool({"properties": {"a": {"$ref": "#"}}})], "tool 'f': the schema refers to itself"),
        ([tool({"$ref": "#"})], "tool 'f': the schema refers to itself"),
        (
            [tool({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}})],
            "tool 'f': the schema refers to itself",
        ),
        (
            [
                tool(
                    {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 9}}}
                )
            ],
            "tool 'f': the schema refers to itself",
        ),
        (
            [tool({"properties": {"a": {"required": [3], "properties": {}}}})],
            "tool 'f'.a: required is no list of names",
        ),
    ],
)
def test_what_is_no_tool_is_refused_in_one_line(tools, told):
    assert told in refused(tools)


def test_a_schema_that_branches_into_itself_is_refused_at_once():
    wide = {f"p{i}": {"$ref": "#/$defs/n"} for i in range(50)}
    looped = tool({"properties": wide, "$defs": {"n": {"type": "object", "properties": wide}}})
    assert "refers to itself, or is too deep" in refused([looped])


def test_types_that_are_open_stay_open_for_values():
    schema = {
        "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "b": {"type": ["string", "null"]}}
    }
    kinds = {name: own["type"] for name, own in types_of([tool(schema)])["f"]["properties"].items()}
    assert kinds == {"a": "any", "b": "string"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "anyOf", "allOf", "$ref", "enum", "required", "x", "const"]
            ),
            inner | st.sampled_from(["#", "#/x", "string", "object", "null"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_any_schema_is_made_plain_or_refused(schema):
    told = ""
    try:
        made = plain_schema(schema, "x")
    except DGemmaError as error:
        told = str(error)
    assert "\n" not in told if told else plain_schema(made, "x")["type"] == made["type"]
