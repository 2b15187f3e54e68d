"""/v1/completions: a text that goes on, or what stands before a suffix; and texts as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.server.answers import Answer, Part, Sketch
from mlx_dgemma.server.asking import SAMPLES, STOPS, Asked, take_diffusion, take_sampling, within
from mlx_dgemma.server.bodies import Fields
from mlx_dgemma.server.errors import Refused
from mlx_dgemma.server.service import Service
from mlx_dgemma.server.sse import DONE, data
from mlx_dgemma.server.surface import Asking, streaming
from mlx_dgemma.text.request import CanvasPlan

GO_ON = "Go on with this text, from its last character on, and write nothing else:\n\n"
FILL_IN = "Write what is missing at the end of this text, and nothing else. It goes on with {suffix!r}.\n\n"
GAP = 32  # tokens, where no length was given
SUFFIX = 32  # tokens of it that are clamped behind the gap
REASONS = {"stop": "stop", "tool_calls": "stop", "length": "length", "repetition": "length"}


@dataclass(kw_only=True)
class Completion(Asking):
    """One request of this surface.

    Attributes:
        suffix: what of the suffix is clamped behind the gap.
    """

    PREFIX = "cmpl-"
    suffix: str

    @classmethod
    def of(cls, service: Service, body: dict[str, Any]) -> Completion:
        """Reads a body.

        Raises:
            Refused: what is no request, or asks for what cannot be done.
        """
        fields = Fields(body)
        model = service.named(fields.text("model"))
        prompts = fields.texts("prompt", 1)
        if not prompts:
            raise Refused(400, "prompt is missing; give a text", param="prompt")
        if fields.flag("echo") or (fields.integer("best_of", 1) or 1) > 1 or fields.integer("logprobs", 0):
            raise Refused(400, "echo, best_of and logprobs are not supported here; leave them out")
        suffix = fields.text("suffix") or ""
        told = "" if service.alone else FILL_IN.format(suffix=suffix[:200]) if suffix else GO_ON
        asked = Asked([{"role": "user", "content": told + prompts[0]}])
        take_sampling(asked, fields, "max_tokens")
        asked.stop = fields.texts("stop", STOPS)
        asked.samples = fields.integer("n", 1, SAMPLES) or 1
        take_diffusion(asked, fields)
        within(asked, service)
        kept = ""
        if suffix:
            ids = service.spelled(suffix, "suffix")[:SUFFIX]
            gap = min(asked.settings.pop("max_new_tokens", GAP), service.context // 2)
            asked.plan = CanvasPlan([*[None] * gap, *ids], seed=asked.seed)
            asked.settings["max_new_tokens"] = gap + len(ids)
            kept = service.tokenizer.decode(ids, skip_special_tokens=True)
        return cls(service=service, model=model, asked=asked, suffix=kept, **streaming(fields))

    def whole(self, parts: Iterable[Part], answer: Answer) -> dict[str, Any]:
        """The whole answer."""
        texts, ends = [""] * self.asked.samples, dict[int, Part]()
        for part in parts:
            texts[part.index] += part.text
            if part.end is not None:
                ends[part.index] = part
        choices = [self._choice(i, self._middle(text), ends[i].finish_reason) for i, text in enumerate(texts)]
        return {**self._head(), "choices": choices, "usage": self._usage(ends, answer)}

    def streamed(self, answer: Answer) -> Stream:
        """What makes chunks of it."""
        return Stream(self, answer)

    def _middle(self, text: str) -> str:
        """A text without the suffix that was clamped behind it."""
        return text.partition(self.suffix)[0] if self.suffix else text

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.identity, "object": "text_completion", "created": self.created, "model": self.model,
            "system_fingerprint": self.service.fingerprint,
        }  # fmt: skip

    @staticmethod
    def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
        own = None if reason is None else REASONS[reason]
        return {"index": index, "text": text, "logprobs": None, "finish_reason": own}

    @staticmethod
    def _usage(ends: dict[int, Part], answer: Answer) -> dict[str, Any]:
        tokens = sum(part.end.stats.tokens for part in ends.values() if part.end is not None)
        prompt = max((n for n in answer.prompt_tokens if n is not None), default=0)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


class Stream:
    """Makes chunks of an answer's parts; before a suffix the text comes as a whole, when that can be told from it."""

    def __init__(self, asked: Completion, answer: Answer):
        self.asked, self.answer = asked, answer
        self._held = [""] * asked.asked.samples
        self._ends: dict[int, Part] = {}

    def before(self) -> Iterator[str]:
        """Nothing."""
        yield from ()

    def chunks(self, part: Part | Sketch) -> Iterator[str]:
        """What a part adds."""
        if isinstance(part, Sketch):
            return
        self._held[part.index] += part.text
        if part.end is None and self.asked.suffix:
            return
        text, self._held[part.index] = self.asked._middle(self._held[part.index]), ""
        if part.end is not None:
            self._ends[part.index] = part
        yield self._chunk([self.asked._choice(part.index, text, part.finish_reason)])

    def after(self) -> Iterator[str]:
        """What it took, if the client asked; and the end."""
        if self.asked.wants_usage:
            yield data({**self.asked._head(), "choices": [], "usage": self.asked._usage(self._ends, self.answer)})
        yield DONE

    def _chunk(self, choices: list[dict[str, Any]]) -> str:
        return data({**self.asked._head(), "choices": choices})


def tokenized(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """/v1/tokenize: the token ids of a text."""
    fields = Fields(body)
    service.named(fields.text("model"))
    text = next((own for name in ("prompt", "content", "text") if (own := fields.text(name)) is not None), None)
    if text is None:
        raise Refused(400, "prompt is missing; give a text", param="prompt")
    special = fields.flag("add_special_tokens")
    ids = service.tokenizer.encode(text, add_special_tokens=special is not False)
    return {"tokens": ids, "count": len(ids), "max_model_len": service.context}


def detokenized(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """/v1/detokenize: the text of token ids."""
    fields = Fields(body)
    service.named(fields.text("model"))
    ids, size = fields.items("tokens", service.context), service.engine.model.config.vocab_size
    if ids is None or not all(type(token) is int and 0 <= token < size for token in ids):
        raise Refused(400, f"tokens are no list of ids from 0 to {size - 1}", param="tokens")
    text = service.tokenizer.decode(ids, skip_special_tokens=False)
    return {"prompt": text, "content": text}
