"""What a body of /v1/responses says: items as messages, tools, and what its answer repeats of it."""

from __future__ import annotations

from typing import Any

from mlx_dgemma.server.asking import TOOLS, Asked
from mlx_dgemma.server.bodies import Fields, texts_of
from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.images import content_of, from_url
from mlx_dgemma.text.request import Message

Item = dict[str, Any]
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
FUNCTION = {"description": None, "parameters": None, "strict": None}  # what a tool is told with where it says nothing
FORM = {"description": None, "strict": False}


def messages_of(fields: Fields) -> list[Message]:
    """The conversation: a text, or items."""
    given = fields.values.get("input")
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    items = fields.items("input")
    if not items:
        raise Refused(400, "input is missing; give a text, or a list of items", param="input")
    made = list[Message]()
    for number, item in enumerate(items):
        _add(made, item, f"input[{number}]")
    return made


def _add(made: list[Message], item: object, place: str) -> None:
    """An item joins the messages; calls join the assistant's turn that they belong to."""
    if not isinstance(item, dict):
        raise Refused(400, f"{place} is no object", param=place)
    kind = item.get("type") or "message"
    if kind == "message":
        content = content_of(item.get("content"), f"{place}.content", from_url, _text)
        made.append({"role": item.get("role"), "content": content})
    elif kind == "reasoning":
        made.append({"role": "assistant", "reasoning": _text(item.get("content") or item.get("summary") or [], place)})
    elif kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments") if kind == "function_call" else {"input": item.get("input")}
        call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": arguments}}
        if not made or made[-1].get("role") != "assistant":
            made.append({"role": "assistant"})
        made[-1].setdefault("tool_calls", []).append({"type": "function", **call})
    elif kind in ("function_call_output", "custom_tool_call_output"):
        content = content_of(item.get("output"), f"{place}.output", from_url, _text)
        made.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    else:
        raise Refused(400, f"{place}: items of type {str(kind)[:40]!r} are not supported", param=place)


def _text(content: object, place: str) -> str:
    """The texts of a content."""
    return "\n".join(texts_of(content, place, TEXTS))


def take_tools(asked: Asked, fields: Fields) -> None:
    """Functions, also those in namespaces; tools that OpenAI's servers would run are left out."""
    for number, tool in enumerate(fields.items("tools", TOOLS) or []):
        if not isinstance(tool, dict):
            raise Refused(400, f"tools[{number}] is no object", param="tools")
        inside = tool.get("tools") if tool.get("type") == "namespace" else [tool]
        for own in inside if isinstance(inside, list) else []:
            if isinstance(own, dict) and own.get("type") == "function":
                asked.tools.append({"type": "function", "function": {k: v for k, v in own.items() if k != "type"}})
    asked.parallel_tool_calls = fields.flag("parallel_tool_calls") is not False
    choice = fields.values.get("tool_choice")
    name = choice.get("name") if isinstance(choice, dict) else choice
    if name is not None and not isinstance(name, str):
        raise fields.wrong("tool_choice", "auto, none, required or a function's name")
    asked.tool_choice = name if name is not None and asked.tools else "auto"


def told_of(fields: Fields) -> Item:
    """What the answer repeats, in the types that clients read."""
    own = fields.values
    tools = [FUNCTION | tool if tool.get("type") == "function" else tool for tool in fields.items("tools") or []]
    text, effort = fields.fields("text"), fields.fields("reasoning")
    form = None if text is None else text.values.get("format")
    names = ("safety_identifier", "prompt_cache_key")
    reasoning = None if effort is None else {"effort": effort.text("effort"), "summary": effort.text("summary")}
    return {
        "instructions": fields.text("instructions"), "metadata": own.get("metadata") or {}, "tools": tools,
        "tool_choice": own.get("tool_choice") or "auto", "reasoning": reasoning,
        "text": {"format": FORM | form if form and form.get("type") == "json_schema" else form or {"type": "text"}},
        "temperature": 1.0 if own.get("temperature") is None else own["temperature"],
        "top_p": 1.0 if own.get("top_p") is None else own["top_p"],
        **{name: own[name] if isinstance(own.get(name), str) else None for name in names},
    }  # fmt: skip
