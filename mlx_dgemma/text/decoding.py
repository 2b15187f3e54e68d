"""Growing token ids to growing text, without half characters."""

import codecs
import re

from mlx_dgemma.checkpoint.tokenizer import Tokenizer

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how vocabularies with byte fallback name the 256 bytes


class GrowingText:
    """What it gives piece by piece is, joined, what it gives for all tokens at once."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.text = ""

    def add(self, tokens: list[int], *, final: bool, is_cut: bool = False) -> str:
        """The text that these tokens add.

        Args:
            tokens: the next ones.
            final: whether none follow; until then bytes of a character wait, as the next ones decide what they are.
            is_cut: whether the end is not the model's: an unfinished character there is left out.
        """
        self.tokens += tokens
        data = trailing_bytes(self.tokenizer, self.tokens)
        waiting = len(data) if not final else unfinished(data) if is_cut else 0
        text = self.tokenizer.decode(self.tokens[: len(self.tokens) - waiting], skip_special_tokens=True)
        if not final or is_cut:
            text = text.rstrip("\ufffd")  # half a character of a vocabulary that names its bytes otherwise
        if len(text) < len(self.text):
            return ""
        added = text[len(self.text) :]
        self.text = text
        return added


def trailing_bytes(tokenizer: Tokenizer, tokens: list[int]) -> bytes:
    """What the byte tokens at the end stand for, a byte a token."""
    data = bytearray()
    for token in reversed(tokens):
        name = BYTE.fullmatch(tokenizer.convert_ids_to_tokens([token])[0])
        if name is None:
            break
        data.append(int(name[1], 16))
    return bytes(reversed(data))


def unfinished(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that does not end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(decoder.getstate()[0])
