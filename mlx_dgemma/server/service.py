"""What the surfaces share: the worker, the names of what is served, and what this checkpoint can do."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_dgemma import __version__
from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import host
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.server.answers import Answer
from mlx_dgemma.server.errors import Refused, refusal
from mlx_dgemma.server.images import Decoder
from mlx_dgemma.server.worker import Worker
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.messages import last_asked
from mlx_dgemma.text.prompts import encode, prompt_ids
from mlx_dgemma.text.request import Message, Request

THINKS = ":think"  # behind a model's name, for clients that have no field for it
STARTED = 1_700_000_000  # what `created` of a model says; nobody uses it, and it must not change


@dataclass(frozen=True, eq=False)
class Service:
    """One engine behind all surfaces.

    Attributes:
        worker: does the work.
        engine: for its tokenizer and sizes; only the worker's thread computes with it.
        name: under which it is served.
        context: positions of a prompt and its answer.
        images: decodes them.
        can_think: whether the chat template asks for thoughts.
        alone: whether the model sees no turn before the user's last, as the embedded checkpoint knows short talks only.
        fingerprint: of all that a seed's text depends on.
    """

    worker: Worker
    engine: Engine
    name: str
    context: int
    images: Decoder = field(default_factory=Decoder)
    can_think: bool = field(init=False)
    alone: bool = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        about = repr((self.name, __version__, host.MLX_VERSION, platform.machine(), platform.system()))
        object.__setattr__(self, "can_think", _can_think(self.engine.tokenizer))
        object.__setattr__(self, "alone", self.engine.checkpoint == "embedded")
        object.__setattr__(self, "fingerprint", "fp_" + hashlib.sha256(about.encode()).hexdigest()[:12])

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the checkpoint, which has one: the server refuses to start without."""
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer

    @property
    def names(self) -> list[str]:
        """What clients may call it."""
        return [self.name, *([self.name + THINKS] if self.can_think else [])]

    def named(self, model: str | None) -> str:
        """The name to answer with.

        Raises:
            Refused: another model than the one that is served.
        """
        if model is None:
            return self.name
        if model not in self.names:
            raise Refused(
                404, f"the model {model[:80]!r} is not served here; {self.name!r} is", param="model",
                code="model_not_found",
            )  # fmt: skip
        return model

    def eyes(self) -> VisionConfig:
        """How the model sees images.

        Raises:
            Refused: it does not.
        """
        try:
            return self.engine.model.require_eyes().config
        except DGemmaError as error:
            raise refusal(error) from None

    @property
    def modalities(self) -> list[str]:
        """What a prompt may hold, in the words of model lists."""
        return ["text"] if self.engine.model.eyes is None else ["text", "image"]

    def spelled(self, text: str, what: str) -> list[int]:
        """Token ids of a text that stands in the answer; control tokens that it spells out are text.

        Raises:
            Refused: characters that the tokenizer does not know; `what` names the text.
        """
        try:
            return encode(self.tokenizer, text, what, plain=True)
        except DGemmaError as error:
            raise refusal(error) from None

    def answer(self, requests: Sequence[Request], *, drafts: bool = False) -> Answer:
        """Begins to answer; see `Answer`."""
        return Answer(self.worker, requests, drafts=drafts)

    def conversation(self, messages: list[Message]) -> list[Message]:
        """The messages that the model sees."""
        return messages[last_asked(messages) :] if self.alone else messages


def _can_think(tokenizer: Tokenizer | None) -> bool:
    try:
        prompt_ids(tokenizer, [{"role": "user", "content": "a"}], thinking=True)
    except DGemmaError:
        return False
    return True
