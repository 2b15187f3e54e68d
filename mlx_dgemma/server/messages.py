"""/v1/messages and its count_tokens, as Anthropic's clients speak them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.server.answers import Answer, Behind, End, Part, Sketch
from mlx_dgemma.server.asking import STOPS, TOOLS, Asked, go_on, take_diffusion, take_sampling, within
from mlx_dgemma.server.bodies import Fields, texts_of
from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.images import content_of, from_source
from mlx_dgemma.server.service import THINKS, Service
from mlx_dgemma.server.sse import data
from mlx_dgemma.server.surface import Asking, streaming
from mlx_dgemma.text.reply import ToolCall
from mlx_dgemma.text.request import Message

REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "repetition": "max_tokens"}
BILLING = "x-anthropic-billing-header"  # begins a text that differs in every request, and says nothing to the model
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
TEXT = {"type": "text", "text": "", "citations": None}
NOWHERE = {"cache_creation": None, "inference_geo": None, "service_tier": "standard"}  # of usage, which has to have it
PING = 'event: ping\ndata: {"type":"ping"}\n\n'


@dataclass(kw_only=True)
class Messages(Asking):
    """One request of this surface.

    Attributes:
        continues: the beginning of the answer, which the client has.
    """

    PREFIX = "msg_"
    continues: str

    @classmethod
    def of(cls, service: Service, body: dict[str, Any]) -> Messages:
        """Reads a body.

        Raises:
            Refused: what is no request, or asks for what cannot be done.
        """
        fields = Fields(body)
        model = service.named(fields.text("model"))
        messages = fields.items("messages")
        if not messages:
            raise Refused(400, "messages are missing; give a list with at least one")
        system = _texts(fields.values.get("system"), "system")
        turns = [own for number, message in enumerate(messages) for own in _turns(message, f"messages[{number}]")]
        asked = Asked([{"role": "system", "content": system}] * bool(system) + turns)
        take_sampling(asked, fields, "max_tokens")
        asked.stop = fields.texts("stop_sequences", STOPS)
        thinking = fields.fields("thinking")
        wanted = thinking is not None and thinking.text("type") in ("enabled", "adaptive")
        asked.thinking = (wanted and service.can_think) or model.endswith(THINKS)
        _take_tools(asked, fields)
        take_diffusion(asked, fields)
        within(asked, service)
        last = asked.messages[-1]
        is_begun = last["role"] == "assistant" and last.get("content") and not last.get("tool_calls")
        continues = go_on(asked, service) if is_begun and len(asked.messages) > 1 else ""
        return cls(service=service, model=model, asked=asked, continues=continues, **streaming(fields))

    def whole(self, parts: Iterable[Part], answer: Answer) -> dict[str, Any]:
        """The whole answer."""
        text, thought, calls, end, reason = "", "", list[ToolCall](), None, "stop"
        for part in parts:
            text, thought, calls = text + part.text, thought + part.thought, [*calls, *part.calls]
            end, reason = part.end, part.finish_reason or reason
        text = Behind(self.continues).add(text)
        content: list[dict[str, Any]] = [{"type": "thinking", "thinking": thought, "signature": ""}] * bool(thought)
        content += [TEXT | {"text": text}] * bool(text or not calls)
        content += [_tool_use(call, call.arguments) for call in calls]
        return {
            **self._head(answer),
            "content": content,
            **_stopped(reason, end),
            "usage": self._usage(answer, end) | NOWHERE,
            "diffusion": {} if end is None else end.about(),
        }

    def streamed(self, answer: Answer) -> Stream:
        """What makes events of it."""
        return Stream(self, answer)

    def _head(self, answer: Answer) -> dict[str, Any]:
        return {
            "id": self.identity, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "stop_details": None, "container": None,
            "usage": self._usage(answer, None) | NOWHERE,
        }  # fmt: skip

    @staticmethod
    def _usage(answer: Answer, end: End | None) -> dict[str, Any]:
        cached = 0 if end is None else end.stats.cached_tokens
        return {
            "input_tokens": (answer.prompt_tokens[0] or 0) - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": 0 if end is None else end.stats.tokens,
            "output_tokens_details": {"thinking_tokens": 0 if end is None else end.stats.thought_tokens},
            "server_tool_use": None,
        }


class Stream:
    """Makes events of an answer's parts: a block for the thought, one for the text, one for each call."""

    def __init__(self, asked: Messages, answer: Answer):
        self.asked, self.answer = asked, answer
        self._open = ""  # the kind of the block that is open
        self._count = 0  # blocks so far
        self._behind = Behind(asked.continues)

    def before(self) -> Iterator[str]:
        """The message, still empty."""
        yield _event("message_start", message=self.asked._head(self.answer))

    def chunks(self, part: Part | Sketch) -> Iterator[str]:
        """What a part adds."""
        if isinstance(part, Sketch):
            return
        text = self._behind.add(part.text)
        if part.thought:
            yield from self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": part.thought})
        if text:
            yield from self._opened("text", TEXT)
            yield self._delta({"type": "text_delta", "text": text})
        for call in part.calls:
            yield from self._closed()
            yield from self._opened("tool_use", _tool_use(call, {}))
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})
            yield from self._closed()
        if part.end is not None:
            yield from self._closed()
            delta = _stopped(part.finish_reason or "stop", part.end)
            yield _event("message_delta", delta=delta, usage=self.asked._usage(self.answer, part.end))

    def after(self) -> Iterator[str]:
        """The end."""
        yield _event("message_stop")

    def _opened(self, kind: str, block: dict[str, Any]) -> Iterator[str]:
        if self._open != kind:
            yield from self._closed()
            self._open = kind
            yield _event("content_block_start", index=self._count, content_block=block)

    def _closed(self) -> Iterator[str]:
        if self._open:
            yield _event("content_block_stop", index=self._count)
            self._open, self._count = "", self._count + 1

    def _delta(self, delta: dict[str, Any]) -> str:
        return _event("content_block_delta", index=self._count, delta=delta)


def _stopped(reason: str, end: End | None) -> dict[str, str | None]:
    """Why the answer ended, and at which stop text."""
    text = end.stop_text if end is not None and reason == "stop" else ""
    own = "stop_sequence" if text else REASONS[reason]
    return {"stop_reason": own, "stop_sequence": text or None, "stop_details": None, "container": None}


def _tool_use(call: ToolCall, arguments: dict[str, Any]) -> dict[str, Any]:
    """The block of a call."""
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments, "caller": {"type": "direct"}}


def failed(error: Refused) -> str:
    """The event of something that went wrong on the way."""
    return data(error.as_anthropic(), "error")


def _event(kind: str, **fields: Any) -> str:
    return data({"type": kind, **fields}, kind)


def _texts(content: object, place: str) -> str:
    """The texts of a content, a text or a list of blocks, without what only accounts for a request."""
    texts = [] if content is None else texts_of(content, place)
    return "\n".join(text for text in texts if not text.startswith(BILLING))


def _turns(message: object, place: str) -> list[Message]:
    """A message in the form that `text.messages` reads: results of tools are messages of their own."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
        raise Refused(400, f"{place} is no message of the user or the assistant")
    role, content = message["role"], message.get("content")
    if isinstance(content, str) or role == "system":
        return [{"role": role, "content": _texts(content, place)}]
    if not isinstance(content, list) or not content:
        raise Refused(400, f"{place}.content is no text and no list of blocks")
    results, rest = list[Message](), list[Any]()
    made: Message = {"role": role}
    for number, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result" and role == "user":
            told = content_of(block.get("content"), f"{place}.content[{number}].content", from_source, _texts)
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": told})
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            call = {"id": block.get("id"), "type": "function", "function": function}
            made.setdefault("tool_calls", []).append(call)
        elif kind == "thinking" and role == "assistant":
            made["reasoning"] = block.get("thinking")
        elif kind != "redacted_thinking":
            rest.append(block)
    said = content_of(rest, f"{place}.content", from_source, _texts)
    if said or (not results and "tool_calls" not in made):
        made["content"] = said
    return [*results, *([made] if len(made) > 1 else [])]


def _take_tools(asked: Asked, fields: Fields) -> None:
    """Tools with schemas; those that Anthropic's servers would run have none, and are left out."""
    for number, tool in enumerate(fields.items("tools", TOOLS) or []):
        if not isinstance(tool, dict):
            raise Refused(400, f"tools[{number}] is no object")
        if tool.get("input_schema") is not None:
            about = {"name": tool.get("name"), "description": tool.get("description")}
            asked.tools.append({"type": "function", "function": {**about, "parameters": tool["input_schema"]}})
    choice = fields.fields("tool_choice")
    if choice is not None and asked.tools:
        asked.parallel_tool_calls = not choice.flag("disable_parallel_tool_use")
        kind = choice.text("type") or "auto"
        wanted = choice.text("name") if kind == "tool" else CHOICES.get(kind)
        if wanted is None:
            raise choice.wrong("type", "auto, any, none, or tool with a name")
        asked.tool_choice = wanted
