"""Tokenizers: what this package asks of one, and the two kinds it makes from a checkpoint's files.

tokenizer.json is read with `tokenizers`, the chat template with jinja2; a folder with tokenizer.model alone goes
through sentencepiece. The parity target is transformers' AutoTokenizer, which takes seconds to import.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlx_dgemma.checkpoint import chat_template as template
from mlx_dgemma.errors import DGemmaError, first_line

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
Conversation = list[dict[str, Any]]


class Tokenizer(Protocol):
    """Text to token ids and back. Those of transformers and mlx-lm have this form."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja source, None if the checkpoint has none."""

    @property
    def pad_token_id(self) -> int | None:
        """What fills a canvas behind the end of the text."""

    @property
    def unk_token_id(self) -> int | None:
        """What stands for text that the vocabulary has no token for; None where nothing is ever lost."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str: ...

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Names of tokens, as the vocabulary has them."""

    def get_vocab(self) -> dict[str, int]:
        """Token ids by name."""

    def apply_chat_template(
        self, messages: Conversation, /, *, tokenize: bool, add_generation_prompt: bool, enable_thinking: bool
    ) -> Any:
        """The text (with `tokenize` False) that these messages become."""


@dataclass(frozen=True)
class TokenizerConfig:
    """What stands beside the vocabulary.

    Attributes:
        named: special tokens by their role: bos_token, pad_token, ….
        extra: further special tokens.
        chat_template: its Jinja source, or None.
    """

    named: dict[str, str]
    extra: tuple[str, ...] = ()
    chat_template: str | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> TokenizerConfig:
        """Reads tokenizer_config.json, special_tokens_map.json and chat_template.jinja, where they are."""
        content = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
        extra = content.get("extra_special_tokens") or content.get("additional_special_tokens") or []
        roles = extra if isinstance(extra, dict) else {}
        named = {role: _content(token) for role, token in {**content, **roles}.items() if role.endswith("_token")}
        listed = [] if isinstance(extra, dict) else [_content(token) for token in extra]
        return cls(
            {role: token for role, token in named.items() if token is not None},
            tuple(token for token in listed if token is not None),
            _chat_template(folder, content.get("chat_template")),
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


def _content(token: Any) -> str | None:
    """The text of a token, which may be spelled out as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _chat_template(folder: Path, configured: Any) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if isinstance(configured, list):  # several of them, by name
        configured = {entry["name"]: entry["template"] for entry in configured}.get("default")
    return configured if isinstance(configured, str) else None


class _FromFiles(ABC):
    """What the two kinds share: special tokens and the chat template."""

    def __init__(self, config: TokenizerConfig):
        self.config = config
        self.chat_template = config.chat_template

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    @abstractmethod
    def _vocabulary(self) -> dict[str, int]: ...

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token ids by name; made when first asked for, as there may be 262,144 of them."""
        return self._vocabulary()

    def get_vocab(self) -> dict[str, int]:
        """Token ids by name."""
        return self.vocabulary

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token by its name, None if there is no such token."""
        return self.vocabulary.get(token)

    def _id_of(self, role: str) -> int | None:
        return self.vocabulary.get(self.config.named.get(role, ""))

    @property
    def pad_token_id(self) -> int | None:
        return self._id_of("pad_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._id_of("unk_token")

    def apply_chat_template(
        self, messages: Conversation, *, tokenize: bool = False, add_generation_prompt: bool = True, **others: Any
    ) -> str | list[int]:
        """The text that these messages become, or its token ids.

        Args:
            messages: by turns, each with a role and a content.
            tokenize: whether ids are wanted.
            add_generation_prompt: whether the answer's turn is opened.
            others: further variables of the template, `enable_thinking` and `tools` among them.
        """
        if self.chat_template is None:
            raise DGemmaError("the tokenizer has no chat template; add chat_template.jinja")
        known = {**self.config.named, "tools": None, "documents": None, **others}
        known |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        text = template.render(self.chat_template, known)
        return self.encode(text, add_special_tokens=False) if tokenize else text


class FastTokenizer(_FromFiles):
    """A tokenizer.json."""

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig):
        super().__init__(config)
        self.backend = backend
        backend.no_truncation()
        backend.no_padding()
        # special tokens may be named in the configuration only
        backend.add_special_tokens(list(dict.fromkeys([*config.named.values(), *config.extra])))

    @classmethod
    def from_folder(cls, folder: Path) -> FastTokenizer:
        from tokenizers import Tokenizer as Backend

        return cls(Backend.from_file(str(folder / JSON)), TokenizerConfig.from_folder(folder))

    def _vocabulary(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with what the file's own post-processor adds, unless told otherwise."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Names of tokens, as the vocabulary has them; empty for an id that has none."""
        return [self.backend.id_to_token(token) or "" for token in ids]


class SentencePieceTokenizer(_FromFiles):
    """A tokenizer.model: pieces of text, between special tokens that sentencepiece itself does not see in a text."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, config: TokenizerConfig):
        self.size = size = processor.get_piece_size()  # the model's own vocabulary may be larger
        control = [processor.id_to_piece(i) for i in range(size) if processor.is_control(i)]
        own = {"unk_token": processor.unk_id(), "bos_token": processor.bos_id()}
        own |= {"eos_token": processor.eos_id(), "pad_token": processor.pad_id()}
        named = {role: processor.id_to_piece(token) for role, token in own.items() if token >= 0} | config.named
        super().__init__(TokenizerConfig(named, config.extra, config.chat_template))
        self.processor = processor
        known = [token for token in (*control, *named.values(), *config.extra) if token in self.vocabulary]
        self._special = {token: self.vocabulary[token] for token in known}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)")

    @classmethod
    def from_folder(cls, folder: Path) -> SentencePieceTokenizer:
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE))
        return cls(processor, TokenizerConfig.from_folder(folder))

    def _vocabulary(self) -> dict[str, int]:
        return {self.processor.id_to_piece(i): i for i in range(self.processor.get_piece_size())}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; nothing is added, as Gemma's chat template writes its own beginning."""
        ids: list[int] = []
        for part in self._split.split(text):
            ids += [self._special[part]] if part in self._special else self.processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return "".join(self._texts(ids, skip_special_tokens))

    def _texts(self, ids: Sequence[int], skip_special_tokens: bool) -> Iterator[str]:
        names = {token: name for name, token in self._special.items()}
        for is_special, run in groupby(ids, key=lambda token: token in names):
            if not is_special:
                yield self.processor.decode([token for token in run if token < self.size])
            elif not skip_special_tokens:
                yield "".join(names[token] for token in run)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Names of tokens, as the vocabulary has them; empty for an id that has none."""
        return [self.processor.id_to_piece(token) if token < self.size else "" for token in ids]


def load_tokenizer(folder: Path) -> FastTokenizer | SentencePieceTokenizer | None:
    """The tokenizer of a checkpoint folder, None if it has no tokenizer files.

    Raises:
        DGemmaError: files that cannot be read.
    """
    kinds: dict[str, type[FastTokenizer] | type[SentencePieceTokenizer]]
    kinds = {JSON: FastTokenizer, SENTENCEPIECE: SentencePieceTokenizer}
    for name, kind in kinds.items():
        if (folder / name).is_file():
            try:
                return kind.from_folder(folder)
            # `tokenizers` raises a bare Exception for a file that it cannot read
            except Exception as error:
                raise DGemmaError(
                    f"the tokenizer in {folder} cannot be read ({first_line(error)}); download it again"
                ) from None
    return None
