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
        places, data = trailing_bytes(self.tokenizer, self.tokens)
        waiting = len(data) if not final else unfinished(data) if is_cut else 0
        end = places[-waiting] if waiting else len(self.tokens)
        text = self.tokenizer.decode(self.tokens[:end], skip_special_tokens=True)
        if not final or is_cut:
            text = text.rstrip("\ufffd")  # half a character of a vocabulary that names its bytes otherwise
        if len(text) < len(self.text):
            return ""
        added = text[len(self.text) :]
        self.text = text
        return added


def trailing_bytes(tokenizer: Tokenizer, tokens: list[int]) -> tuple[list[int], bytes]:
    """Where the byte tokens at the end are, and what they stand for; tokens that no text shows may be among them."""
    places, data = list[int](), bytearray()
    for at in reversed(range(len(tokens))):
        name = BYTE.fullmatch(tokenizer.convert_ids_to_tokens([tokens[at]])[0])
        if name is not None:
            places.append(at)
            data.append(int(name[1], 16))
        elif tokenizer.decode([tokens[at]], skip_special_tokens=True):
            break
    return places[::-1], bytes(reversed(data))


def unfinished(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that does not end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(decoder.getstate()[0])
