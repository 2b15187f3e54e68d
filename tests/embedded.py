"""What tests ask of the embedded checkpoint beside bare tasks."""

import json
import shutil
from pathlib import Path

import pytest

from mlx_dgemma.checkpoint.loading import EMBEDDED

# Until its second generation the embedded checkpoint has no markers of thoughts and calls.
talks = pytest.mark.skipif(
    "<|channel>" not in json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"],
    reason="this embedded checkpoint was not trained on thoughts and tools: its tokenizer has no <|channel>",
)
# Turns and nothing else, as a checkpoint without thoughts and tools has it.
PLAIN = """{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""
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


def without_talks(folder: Path) -> Path:
    """A copy of the embedded checkpoint whose chat template has no place for thoughts and tools."""
    shutil.copytree(EMBEDDED, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(PLAIN, encoding="utf-8")
    return folder
