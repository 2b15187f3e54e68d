"""/v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.server.answers import Answer, Behind, Part, Sketch
from mlx_dgemma.server.asking import (
    SAMPLES,
    STOPS,
    Asked,
    go_on,
    take_diffusion,
    take_draft,
    take_sampling,
    take_thinking,
    take_tools,
    within,
)  # fmt: skip
from mlx_dgemma.server.bodies import Fields
from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.images import with_images
from mlx_dgemma.server.service import Service
from mlx_dgemma.server.sketches import shown
from mlx_dgemma.server.sse import DONE, data
from mlx_dgemma.server.surface import Asking, streaming
from mlx_dgemma.text.decoding import BYTE
from mlx_dgemma.text.reply import ToolCall

REASONS = {"stop": "stop", "tool_calls": "tool_calls", "length": "length", "repetition": "length"}
REFUSED = {  # what would change the answer's meaning and is not there
    "functions": "use tools", "function_call": "use tool_choice", "audio": "only text comes out",
    "logit_bias": "tokens cannot be weighted here", "chat_template": "the checkpoint's is used",
    **dict.fromkeys(("guided_json", "guided_regex", "guided_grammar", "grammar"), "use response_format"),
}  # fmt: skip
LEAST = -9999.0  # what OpenAI tells of tokens beyond all likelihood; JSON has no infinity


@dataclass(kw_only=True)
class Chat(Asking):
    """One request of this surface.

    Attributes:
        wants_logprobs: whether the tokens' own are told.
        continues: the beginning of the answer, which the client has.
        predicted: how many tokens of the expected answer are the draft.
    """

    PREFIX = "chatcmpl-"
    wants_logprobs: bool
    continues: str
    predicted: int

    @classmethod
    def of(cls, service: Service, body: dict[str, Any]) -> Chat:
        """Reads a body.

        Raises:
            Refused: what is no request, or asks for what cannot be done.
        """
        fields = Fields(body)
        model = service.named(fields.text("model"))
        messages = fields.items("messages")
        if not messages:
            raise Refused(400, "messages are missing; give a list with at least one", param="messages")
        for number, message in enumerate(messages):
            if not isinstance(message, dict):
                raise Refused(400, f"messages[{number}] is no object", param=f"messages[{number}]")
        for name, instead in REFUSED.items():
            if body.get(name) not in (None, [], {}, "none"):
                raise Refused(400, f"{name} is not supported: {instead}", param=name)
        modalities = fields.items("modalities") or ["text"]
        if modalities != ["text"]:
            raise Refused(400, "modalities: only text comes out", param="modalities")
        asked = Asked([with_images(message, f"messages[{number}]") for number, message in enumerate(messages)])
        take_sampling(asked, fields, "max_completion_tokens", "max_tokens")
        asked.stop = fields.texts("stop", STOPS)
        asked.samples = fields.integer("n", 1, SAMPLES) or 1
        take_thinking(asked, fields, service)
        take_tools(asked, fields)
        form = fields.fields("response_format")
        asked.response_format = None if form is None else form.values
        take_diffusion(asked, fields)
        predicted = take_draft(asked, fields, service)
        within(asked, service)
        continues = _continue(asked, fields, service)
        wants_logprobs = bool(fields.flag("logprobs"))
        asked.alternatives = fields.integer("top_logprobs", 0, 20) or 0
        if asked.alternatives and not wants_logprobs:
            raise Refused(400, "top_logprobs goes with logprobs: true; give both", param="top_logprobs")
        return cls(
            service=service, model=model, asked=asked, wants_logprobs=wants_logprobs,
            continues=continues, predicted=predicted, **streaming(fields),
        )  # fmt: skip

    def whole(self, parts: Iterable[Part], answer: Answer) -> dict[str, Any]:
        """The whole answer."""
        texts = [_Text(self) for _ in range(self.asked.samples)]
        for part in parts:
            texts[part.index].add(part)
        return {
            "id": self.identity,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.service.fingerprint,
            "choices": [text.choice(i) for i, text in enumerate(texts)],
            "usage": self._usage(texts, answer),
            "diffusion": texts[0].about if len(texts) == 1 else [text.about for text in texts],
        }

    def streamed(self, answer: Answer) -> Stream:
        """What makes chunks of it."""
        return Stream(self, answer)

    def _usage(self, texts: list[_Text], answer: Answer) -> dict[str, Any]:
        prompt = max((n for n in answer.prompt_tokens if n is not None), default=0)
        tokens = sum(text.tokens for text in texts)
        details = {"reasoning_tokens": sum(text.thought_tokens for text in texts)}
        if self.predicted:
            accepted = min(self.predicted, tokens)
            details |= {"accepted_prediction_tokens": accepted}
            details |= {"rejected_prediction_tokens": self.predicted - accepted}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": texts[0].cached},
            "completion_tokens_details": details,
        }


def _continue(asked: Asked, fields: Fields, service: Service) -> str:
    """The beginning of the answer that the last message is; "" if there is none."""
    if not fields.flag("continue_final_message"):
        return ""
    last = asked.messages[-1]
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str) or len(asked.messages) < 2:
        raise Refused(400, "continue_final_message: the last message is no text of the assistant's", param="messages")
    return go_on(asked, service)


class _Text:
    """One of the texts, as it grows."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self.content = self.thought = ""
        self.calls: list[ToolCall] = []
        self.logprobs: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.about: dict[str, Any] = {}
        self.tokens = self.cached = self.thought_tokens = 0
        self._behind = Behind(chat.continues)

    def add(self, part: Part) -> tuple[str, list[dict[str, Any]]]:
        """Takes a part; what it adds to the content, and about its tokens."""
        text = self._behind.add(part.text)
        self.content, self.thought = self.content + text, self.thought + part.thought
        self.calls += part.calls
        about = logprobs(self.chat.service, part) if self.chat.wants_logprobs else []
        self.logprobs += about
        if part.end is not None and part.finish_reason is not None:
            self.reason = REASONS[part.finish_reason]
            self.about = part.end.about()
            if part.finish_reason == "repetition":
                self.about["warning"] = "the model began to repeat itself"
            stats = part.end.stats
            self.tokens, self.cached, self.thought_tokens = stats.tokens, stats.cached_tokens, stats.thought_tokens
        return text, about

    def choice(self, index: int) -> dict[str, Any]:
        """The choice of a whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or (None if self.calls else "")}
        message["refusal"] = None
        if self.thought:
            message["reasoning_content"] = self.thought
        if self.calls:
            message["tool_calls"] = [called(call) for call in self.calls]
        logprobs = {"content": self.logprobs, "refusal": None} if self.chat.wants_logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.reason}


class Stream:
    """Makes chunks of an answer's parts."""

    def __init__(self, chat: Chat, answer: Answer):
        self.chat, self.answer = chat, answer
        self.texts = [_Text(chat) for _ in range(chat.asked.samples)]

    def before(self) -> Iterator[str]:
        """Who speaks."""
        for i in range(len(self.texts)):
            yield self._chunk(i, {"role": "assistant", "content": ""})

    def chunks(self, part: Part | Sketch) -> Iterator[str]:
        """One field a chunk, and a chunk for the end."""
        if isinstance(part, Sketch):
            yield self._chunk(part.index, {}, diffusion=shown(part.draft, self.chat.service, self.chat.asked.drafts))
            return
        text, known = self.texts[part.index], len(self.texts[part.index].calls)
        added, about = text.add(part)
        if part.thought:
            yield self._chunk(part.index, {"reasoning_content": part.thought})
        if added or about:
            logprobs = {"content": about, "refusal": None} if self.chat.wants_logprobs else None
            yield self._chunk(part.index, {"content": added}, logprobs=logprobs)
        for number, call in enumerate(part.calls, known):
            yield self._chunk(part.index, {"tool_calls": [{"index": number, **called(call)}]})
        if text.reason is not None:
            yield self._chunk(part.index, {}, text.reason, diffusion=text.about)

    def after(self) -> Iterator[str]:
        """What it took, if the client asked; and the end."""
        if self.chat.wants_usage:
            yield data({**self._head(), "choices": [], "usage": self.chat._usage(self.texts, self.answer)})
        yield DONE

    def _head(self) -> dict[str, Any]:
        chat = self.chat
        return {
            "id": chat.identity, "object": "chat.completion.chunk", "created": chat.created, "model": chat.model,
            "system_fingerprint": chat.service.fingerprint,
        }  # fmt: skip

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, *, logprobs: dict[str, Any] | None = None,
        diffusion: dict[str, Any] | None = None,
    ) -> str:  # fmt: skip
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return data({**self._head(), "choices": [choice]} | ({} if diffusion is None else {"diffusion": diffusion}))


def called(call: ToolCall) -> dict[str, Any]:
    """A call, as this surface has them."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def logprobs(service: Service, part: Part) -> list[dict[str, Any]]:
    """What is known of the content's tokens: log-probabilities in the step that settled their canvas, tempered."""
    made = []
    for i, (token, log_p) in enumerate(zip(part.tokens, part.log_p, strict=True)):
        likely = part.alternatives[i] if part.alternatives else ()
        top = [_logprob(service, *own) for own in likely]
        made.append({**_logprob(service, token, log_p), "top_logprobs": top})
    return made


def _logprob(service: Service, token: int, log_p: float) -> dict[str, Any]:
    """A token: its text, and its bytes where it is a part of a character."""
    text = service.tokenizer.decode([token], skip_special_tokens=False)
    byte = BYTE.fullmatch(service.tokenizer.convert_ids_to_tokens([token])[0])
    data = list(text.encode()) if byte is None else [int(byte[1], 16)]
    return {"token": text, "logprob": max(log_p, LEAST), "bytes": data}
