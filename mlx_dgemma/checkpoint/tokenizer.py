"""Tokenizers: what this package asks of one."""

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Text to token ids and back. Those of transformers and mlx-lm have this form."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja source, None if the checkpoint has none."""

    @property
    def pad_token_id(self) -> int | None:
        """What fills a canvas behind the end of the text."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str: ...

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Names of tokens, as the vocabulary has them."""

    def get_vocab(self) -> dict[str, int]:
        """Token ids by name."""

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, enable_thinking: bool
    ) -> Any:
        """The text (with `tokenize` False) that these messages become."""
