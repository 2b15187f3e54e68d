"""Whether structured answers have the form that was asked for: random schemas, answered by the embedded checkpoint.

It was never trained on JSON, so nothing but the engine keeps it in form. Every answer is checked by jsonschema. The
figures of docs/structured.md.

python -m benchmarks.schemas
"""

import argparse
import json
import random
import time
from typing import Any

from jsonschema import Draft202012Validator

from mlx_dgemma import DGemmaError, Engine, Request
from mlx_dgemma.tasks.embedded import LEARNED

WORDS = "name city size kind list items colour price note left right top id user-id a.b x_1 total".split()


class Schemas:
    """Draws schemas in the alphabet of the embedded checkpoint."""

    def __init__(self, seed: int):
        self.choice = random.Random(seed)

    def draw(self) -> dict[str, Any]:
        """A schema of an object, or now and then of something else."""
        schema = self._object(3) if self.choice.random() < 0.8 else self.value(3)
        if self.choice.random() < 0.2:  # the same, by reference
            return {"$defs": {"it": schema}, "$ref": "#/$defs/it"}
        return schema

    def value(self, depth: int) -> dict[str, Any]:
        kinds = [self._string, self._number, self._integer, self._enum, self._constant]
        if depth:
            kinds += [self._object, self._object, self._array, self._array, self._union]
        return self.choice.choice(kinds)(depth - 1)

    def _words(self, least: int, most: int) -> list[str]:
        return self.choice.sample(WORDS, self.choice.randint(least, most))

    def _maybe(self, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
        return schema | {key: value for key, value in more.items() if self.choice.random() < 0.4}

    def _string(self, depth: int) -> dict[str, Any]:
        least = self.choice.randint(0, 6)
        return self._maybe({"type": "string"}, minLength=least, maxLength=least + self.choice.randint(0, 20))

    def _integer(self, depth: int) -> dict[str, Any]:
        low = self.choice.randint(-2000, 2000)
        high = low + self.choice.choice([10, 100, 5000])
        bounds = {"minimum": low, "maximum": high} if self.choice.random() < 0.5 else {"exclusiveMinimum": low}
        return self._maybe({"type": "integer"} | bounds, multipleOf=self.choice.choice([2, 5, 10]))

    def _number(self, depth: int) -> dict[str, Any]:
        low = self.choice.choice([-1.5, 0, 0.25, 1000])
        return self._maybe({"type": "number"}, minimum=low, exclusiveMaximum=low + self.choice.choice([0.01, 1, 1e6]))

    def _enum(self, depth: int) -> dict[str, Any]:
        if self.choice.random() < 0.3:
            return {"type": self.choice.choice(["boolean", "null"])}
        numbers = self.choice.sample(range(1000), 3)
        return {"enum": self.choice.choice([self._words(1, 5), numbers, [*numbers, None, True], [[1, 2], {"a": "b"}]])}

    def _constant(self, depth: int) -> dict[str, Any]:
        return {"const": self.choice.choice([*WORDS[:4], 0, 12, 1.5, False, {"a": [1, "b"]}])}

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._words(1, 4)
        required = [name for name in names if self.choice.random() < 0.7]
        closed = {"additionalProperties": False} if self.choice.random() < 0.5 else {}
        properties = {name: self.value(depth) for name in names}
        if self.choice.random() < 0.1:
            return {"type": "object", "additionalProperties": self._integer(0), "maxProperties": 3}
        return {"type": "object", "properties": properties, "required": required} | closed

    def _array(self, depth: int) -> dict[str, Any]:
        least = self.choice.randint(0, 3)
        array = {"type": "array", "items": self.value(depth), "minItems": least, "maxItems": least + 3}
        if self.choice.random() < 0.15:
            pair = [self.value(0), self.value(0)]
            return {"type": "array", "prefixItems": pair, "items": False, "minItems": 2}
        if self.choice.random() < 0.2:
            return array | {
                "items": {"type": "integer", "minimum": 0, "maximum": self.choice.choice([50, 417])},
                "uniqueItems": True,
            }
        return array

    def _union(self, depth: int) -> dict[str, Any]:
        if self.choice.random() < 0.5:
            return {"type": [self.choice.choice(["string", "integer", "boolean"]), "null"]}
        return {"anyOf": [self.value(depth), self.value(depth)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="schemas (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one (default: 0)")
    parser.add_argument("--show", action="store_true", help="print every schema and its answer")
    args = parser.parse_args()
    engine, prompts = Engine.load(), [task.prompt(task.example) for task in LEARNED.values()]
    valid, steps, tokens, began = 0, 0, 0, time.perf_counter()
    for seed in range(args.seed, args.seed + args.n):
        schema, prompt = Schemas(seed).draw(), prompts[seed % len(prompts)]
        form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
        try:
            result = engine.generate(Request(prompt, seed=seed, response_format=form))
            Draft202012Validator(schema).validate(json.loads(result.text))
            valid += result.finish_reason == "stop"
            steps, tokens = steps + result.stats.steps, tokens + result.stats.tokens
            shown = result.text
        except DGemmaError as error:
            shown = f"error: {error}"
            print(f"schema {seed}: {error}", flush=True)
        if args.show:
            print(json.dumps(schema), shown, sep="\n    ", flush=True)
    print(f"{valid} of {args.n} answers are valid: {valid / args.n:.1%}")
    seconds = time.perf_counter() - began
    print(f"{tokens / args.n:.0f} tokens, {steps / args.n:.1f} denoising steps, {seconds / args.n:.2f} s an answer")


if __name__ == "__main__":
    main()
