"""Messages as clients send them, in the one form that chat templates read; what would be lost is refused by name.

    role                system (developer becomes it) · user · assistant · tool
    content             a text; several text parts are joined by newlines. Of users and tools also parts with images:
                        {"type": "image", "image": path, bytes or PIL image}; OpenAI's {"type": "image_url"} with a
                        data: URL becomes it
    reasoning           of an assistant, from `reasoning` or `reasoning_content`
    tool_calls          [{"id", "type": "function", "function": {"name", "arguments": {…}}}]; arguments may be JSON text
    tool_call_id, name  of a tool's result, which may be a text or a JSON object

An assistant's text beside its calls becomes a message before them: the model wrote it there, and templates print it
behind the results otherwise.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from mlx_dgemma.errors import DGemmaError

Message = dict[str, Any]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
IMAGES = ("image", "image_url", "input_image")  # and one that is an image
TEXTS = ("text", "input_text", "output_text")  # what clients call a part that is text
NO_MESSAGE = 'prompt must be a text, a list of {"role", "content"} messages, or a list of token ids'


def normalised(messages: Sequence[object]) -> list[Message]:
    """The messages in the form above.

    Raises:
        DGemmaError: what is no message, an unknown role, content that is no text, calls or results that lead nowhere.
    """
    made: list[Message] = []
    open_calls: dict[str, str] = {}  # names by id, of the last message's calls that have no result yet
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DGemmaError(NO_MESSAGE)
        where = f"message {number} ({message['role']})"
        role = ROLES.get(message["role"])
        if role is None:
            raise DGemmaError(f"{where}: unknown role; known are {', '.join(ROLES)}")
        if role != "assistant" and message.get("tool_calls"):
            raise DGemmaError(f"{where}: tool_calls are the assistant's; leave them out")
        if message.get("function_call") is not None:
            raise DGemmaError(f"{where}: function_call is not supported; use tool_calls")
        if role == "tool":
            made.append(_result(message, open_calls, where))
            continue
        if role == "assistant":
            made += _assistant(message, where)
        else:
            made.append({"role": role, "content": (_content if role == "user" else _text)(message, where)})
        open_calls = {call["id"]: call["function"]["name"] for call in made[-1].get("tool_calls", [])}
    return made


def _assistant(message: Message, where: str) -> list[Message]:
    """A message of the model's; two, if it has both a text and calls."""
    calls = _calls(message.get("tool_calls"), where)
    reasoning = next((r for r in (message.get("reasoning"), message.get("reasoning_content")) if r), None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise DGemmaError(f"{where}: reasoning is a {type(reasoning).__name__}; give a text")
    thought = {} if reasoning is None else {"reasoning": reasoning}
    may_be_absent = message.get("content") is None and (calls or thought)
    text = "" if may_be_absent else _text(message, where)
    if not calls:
        return [{"role": "assistant", "content": text, **thought}]
    if not text.strip():
        return [{"role": "assistant", "content": "", **thought, "tool_calls": calls}]
    return [
        {"role": "assistant", "content": text, **thought},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]


def _content(message: Message, where: str) -> str | list[Message]:
    """A text; or parts, where some are images."""
    content = message.get("content")
    if not isinstance(content, list) or not any(_is_image(part) for part in content):
        return _text(message, where)
    made: list[Message] = []
    for is_image, parts in groupby(content, key=_is_image):
        if is_image:
            made += [_image(part, where) for part in parts]
        else:
            made.append({"type": "text", "text": _text({"content": list(parts)}, where)})
    return made


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in IMAGES


def _image(part: Message, where: str) -> Message:
    """A part that is an image."""
    from mlx_dgemma.text.images import from_data_url  # late: numpy takes a moment, and most messages are texts

    if part["type"] == "image":
        if part.get("image") is None:
            raise DGemmaError(
                f'{where}: an image is missing; give {{"type": "image", "image": path, bytes or PIL image}}'
            )
        return {"type": "image", "image": part["image"]}
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str):
        raise DGemmaError(f"{where}: a part of type {part['type']!r} has no image_url; give a data: URL")
    return {"type": "image", "image": from_data_url(url, where)}


def _text(message: Message, where: str) -> str:
    """The text of a content."""
    content = message.get("content")
    if content is None:
        raise DGemmaError(f"{where} has no content; give a text, an empty one if there is none")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in TEXTS or not isinstance(part.get("text"), str):
            also = ", and images of users and tools" if kind in IMAGES else ""
            raise DGemmaError(f"{where}: content of type {kind!r} is not supported, only text is{also}")
        texts.append(part["text"])
    return "\n".join(texts)


def _calls(calls: object, where: str) -> list[Message]:
    """An assistant's calls, with their arguments as objects."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise DGemmaError(f"{where}: tool_calls is a {type(calls).__name__}; give a list of calls")
    made: list[Message] = []
    for number, call in enumerate(calls, 1):
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if function is None or not isinstance(name, str) or not name:
            raise DGemmaError(f"{where}: call {number} has no function with a name")
        identity = call.get("id")
        if identity is not None and not isinstance(identity, str):
            raise DGemmaError(f"{where}: the id of call {number} ({name}) is no text")
        arguments = _arguments(function.get("arguments"), f"{where}: the arguments of call {number} ({name})")
        identity = f"call_{number}" if identity is None else identity
        if any(identity == other["id"] for other in made):
            raise DGemmaError(f"{where}: two calls have the id {identity!r}")
        made.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
    return made


def _arguments(arguments: object, what: str) -> dict[str, Any]:
    """Of a call: an object, or JSON text that is one."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise DGemmaError(f"{what} are not JSON") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, dict) or any(not isinstance(key, str) for key in arguments):
        raise DGemmaError(f"{what} are no JSON object")
    return arguments


def _result(message: Message, open_calls: dict[str, str], where: str) -> Message:
    """A tool's result; takes its call from those that are open."""
    identity, name = message.get("tool_call_id"), message.get("name")
    if not open_calls:
        raise DGemmaError(f"{where} answers no call; it must follow the assistant's message with the tool_calls")
    if identity is None:  # by name, or in order
        identity = next((i for i, own in open_calls.items() if name in (None, own)), None)
    if not isinstance(identity, str) or identity not in open_calls:
        raise DGemmaError(
            f"{where} answers no call: {(identity or name)!r} is none of {', '.join(map(repr, open_calls))}"
        )
    made = {"role": "tool", "tool_call_id": identity, "name": open_calls.pop(identity)}
    content = message.get("content")
    if isinstance(content, dict):
        return {**made, "content": content}
    if isinstance(content, list) and not all(isinstance(part, dict) and "type" in part for part in content):
        return {**made, "content": json.dumps(content, ensure_ascii=False)}
    is_text = isinstance(content, str | list | None)
    return {**made, "content": _content(message, where) if is_text else json.dumps(content)}


def text_of(content: object) -> str:
    """What a content says, for people: its texts, and a word for each image."""
    if not isinstance(content, list):
        return str(content)
    return "\n".join(str(part.get("text")) if "text" in part else _shown(part) for part in content)


def _shown(part: Message) -> str:
    size = f" {part['width']}×{part['height']}" if "width" in part else ""
    kind = "image" if part.get("type") in IMAGES else part.get("type")
    return f"[{kind}{size}]"


def last_asked(messages: Sequence[Any]) -> int:
    """Where the user's last turn is among messages, also unchecked ones; 0 if there is none."""
    asked = (i for i, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "user")
    return max(asked, default=0)
