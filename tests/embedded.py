"""What tests ask of the embedded checkpoint beside bare tasks."""

import json

import pytest

from mlx_dgemma.checkpoint.loading import EMBEDDED

# Until its second generation the embedded checkpoint has no markers of thoughts and calls.
talks = pytest.mark.skipif(
    "<|channel>" not in json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"],
    reason="this embedded checkpoint was not trained on thoughts and tools: its tokenizer has no <|channel>",
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "weather of a city", "parameters": PARAMETERS},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
