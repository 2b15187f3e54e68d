"""Asks for JSON of a given form, as OpenAI's clients write it.

python examples/structured.py
"""

import json

from mlx_dgemma import Engine, Request

schema = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["number", "word", "other"]},
        "digits": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 4},
    },
    "required": ["kind", "digits"],
}
form = {"type": "json_schema", "json_schema": {"name": "prompt", "schema": schema, "strict": True}}
result = Engine.load().generate(Request("spell 1842", response_format=form))
answer = json.loads(result.text)
print(answer["kind"], answer["digits"])
print(f"{result.stats.steps} denoising steps")
