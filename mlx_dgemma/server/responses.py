"""/v1/responses, without a state: each request brings its whole conversation, as Codex sends it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.server.answers import Answer, End, Part, Sketch
from mlx_dgemma.server.asking import Asked, take_diffusion, take_sampling, within
from mlx_dgemma.server.bodies import Fields
from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.items import Item, messages_of, take_tools, told_of
from mlx_dgemma.server.service import THINKS, Service
from mlx_dgemma.server.sse import data
from mlx_dgemma.server.surface import Asking, named, streaming
from mlx_dgemma.text.reply import ToolCall

UNUSED = {  # what a response has to say of things that are not there
    "previous_response_id": None, "store": False, "background": False, "truncation": "disabled", "top_logprobs": 0,
    "presence_penalty": 0, "frequency_penalty": 0, "max_tool_calls": None, "service_tier": "default",
}  # fmt: skip


@dataclass(kw_only=True)
class Response(Asking):
    """One request of this surface.

    Attributes:
        told: fields of the body that the answer repeats.
    """

    PREFIX = "resp_"
    told: Item

    @classmethod
    def of(cls, service: Service, body: dict[str, Any]) -> Response:
        """Reads a body.

        Raises:
            Refused: what is no request, or asks for what cannot be done.
        """
        fields = Fields(body)
        model = service.named(fields.text("model"))
        if fields.values.get("previous_response_id") is not None or fields.flag("background"):
            raise Refused(
                400, "nothing is kept between requests: send the whole conversation as input, and wait for it"
            )
        messages = messages_of(fields)
        instructions = fields.text("instructions")
        asked = Asked([{"role": "system", "content": instructions}] * bool(instructions) + messages)
        take_sampling(asked, fields, "max_output_tokens")
        effort = fields.fields("reasoning")
        wanted = None if effort is None else effort.text("effort")
        asked.thinking = model.endswith(THINKS) or (service.can_think and wanted not in (None, "none", "minimal"))
        take_tools(asked, fields)
        text = fields.fields("text")
        form = None if text is None else text.fields("format")
        asked.response_format = None if form is None else form.values
        take_diffusion(asked, fields)
        within(asked, service)
        return cls(service=service, model=model, asked=asked, told=told_of(fields), **streaming(fields))

    def whole(self, parts: Iterable[Part], answer: Answer) -> Item:
        """The whole answer."""
        stream = self.streamed(answer)
        for part in parts:
            for _ in stream.chunks(part):
                pass
        return stream.ended()

    def streamed(self, answer: Answer) -> Stream:
        """What makes events of it."""
        return Stream(self, answer)

    def response(self, status: str, output: list[Item], usage: Item | None) -> Item:
        """The response object."""
        return {
            **UNUSED, **self.told, "id": self.identity, "object": "response", "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model, "output": output, "usage": usage,
            "parallel_tool_calls": self.asked.parallel_tool_calls,
            "max_output_tokens": self.asked.settings.get("max_new_tokens"),
        }  # fmt: skip


class Stream:
    """Makes events of an answer's parts: an item for the thought, one for the text, one for each call."""

    def __init__(self, asked: Response, answer: Answer):
        self.asked, self.answer = asked, answer
        self.output: list[Item] = []
        self._open: Item | None = None  # the item that grows
        self._number = 0  # of the next event
        self._end: Part | None = None

    def before(self) -> Iterator[str]:
        """The response, still empty."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self.asked.response("in_progress", [], None))

    def chunks(self, part: Part | Sketch) -> Iterator[str]:
        """What a part adds."""
        if isinstance(part, Sketch):
            return
        if part.thought:
            yield from self._grow("reasoning", part.thought)
        if part.text:
            yield from self._grow("message", part.text)
        for call in part.calls:
            yield from self._call(call)
        if part.end is not None:
            yield from self._close()
            self._end = part

    def after(self) -> Iterator[str]:
        """The end."""
        response = self.ended()
        yield self._event(f"response.{response['status']}", response=response)

    def ended(self) -> Item:
        """The response, whole."""
        part = self._end
        assert part is not None and part.end is not None  # all parts are there
        is_cut = part.finish_reason in ("length", "repetition")
        response = self.asked.response("incomplete" if is_cut else "completed", self.output, self._usage(part.end))
        return {**response, "diffusion": part.end.about()}

    def _usage(self, end: End) -> Item:
        stats = end.stats
        prompt = self.answer.prompt_tokens[0] or 0
        return {
            "input_tokens": prompt, "input_tokens_details": {"cached_tokens": stats.cached_tokens},
            "output_tokens": stats.tokens, "output_tokens_details": {"reasoning_tokens": stats.thought_tokens},
            "total_tokens": prompt + stats.tokens,
        }  # fmt: skip

    def _grow(self, kind: str, text: str) -> Iterator[str]:
        """A text joins the item of its kind, which is opened if it is not."""
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            yield from self._begin(kind)
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        name = "output_text" if kind == "message" else "reasoning_text"
        yield self._event(f"response.{name}.delta", **self._at(), delta=text, **_logprobs(kind))

    def _begin(self, kind: str) -> Iterator[str]:
        is_message = kind == "message"
        item: Item = {"id": named("msg_" if is_message else "rs_"), "type": kind, "status": "in_progress"}
        more: Item = {"role": "assistant"} if is_message else {"summary": []}
        item |= more
        yield self._event("response.output_item.added", output_index=len(self.output), item={**item, "content": []})
        part = (
            {"type": "output_text", "text": "", "annotations": []}
            if is_message
            else {"type": "reasoning_text", "text": ""}
        )
        self._open = {**item, "content": [part]}
        yield self._event("response.content_part.added", **self._at(), part=dict(part))

    def _close(self) -> Iterator[str]:
        if self._open is None:
            return
        part, kind = self._open["content"][0], self._open["type"]
        name = "output_text" if kind == "message" else "reasoning_text"
        yield self._event(f"response.{name}.done", **self._at(), text=part["text"], **_logprobs(kind))
        yield self._event("response.content_part.done", **self._at(), part=part)
        yield from self._done({**self._open, "status": "completed"})

    def _call(self, call: ToolCall) -> Iterator[str]:
        yield from self._close()
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = {"id": named("fc_"), "type": "function_call", "call_id": call.id, "name": call.name}
        begun = {**item, "status": "in_progress", "arguments": ""}
        place = {"item_id": item["id"], "output_index": len(self.output)}
        yield self._event("response.output_item.added", output_index=len(self.output), item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
        yield self._event("response.function_call_arguments.done", **place, arguments=arguments, name=call.name)
        yield from self._done({**item, "status": "completed", "arguments": arguments})

    def _done(self, item: Item) -> Iterator[str]:
        yield self._event("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        self._open = None

    def _at(self) -> Item:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.output), "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return data({"type": kind, "sequence_number": self._number - 1, **fields}, kind)


def failed(error: Refused) -> str:
    """The event of something that went wrong on the way."""
    told = {"type": "error", "sequence_number": 0, "code": error.code, "message": error.message, "param": error.param}
    return data(told, "error")


def _logprobs(kind: str) -> Item:
    return {"logprobs": []} if kind == "message" else {}
