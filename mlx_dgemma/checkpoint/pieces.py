"""The tokenizer of a folder that has a tokenizer.model and no tokenizer.json, through sentencepiece."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_dgemma.checkpoint.tokenizer import FromFiles, TokenizerConfig

if TYPE_CHECKING:
    import sentencepiece

SENTENCEPIECE = "tokenizer.model"


class SentencePieceTokenizer(FromFiles):
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
        self.control_tokens = {token: self.vocabulary[token] for token in known}
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
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
            ids += [self.control_tokens[part]] if part in self.control_tokens else self.processor.encode(part)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text in which a control token that is spelled out is text like any other."""
        ids: list[int] = self.processor.encode(text)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return "".join(self._texts(ids, skip_special_tokens))

    def _texts(self, ids: Sequence[int], skip_special_tokens: bool) -> Iterator[str]:
        names = {token: name for name, token in self.control_tokens.items()}
        for is_special, run in groupby(ids, key=lambda token: token in names):
            if not is_special:
                yield self.processor.decode([token for token in run if token < self.size])
            elif not skip_special_tokens:
                yield "".join(names[token] for token in run)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Names of tokens, as the vocabulary has them; empty for an id that has none."""
        return [self.processor.id_to_piece(token) if token < self.size else "" for token in ids]
