"""The one exception type that users see: a single line saying what is wrong, where, and what to do."""

import re

LONGEST = 1000  # characters of a message; what it quotes may be a file's whole content
# line breaks, what drives a terminal, and halves of surrogate pairs, which no file takes
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class DGemmaError(ValueError):
    """A mistake in the input (a path, a checkpoint, a prompt, an option), told in one line, whatever it quotes."""

    def __init__(self, message: str):
        super().__init__(_BREAKS.sub(lambda character: ascii(character[0])[1:-1], shortened(message)))


class ContextOverflow(DGemmaError):
    """A prompt, or what is given behind it, has more tokens than there are positions."""


class OutOfMemory(DGemmaError):
    """There was no room for what was asked; something smaller, or the same later, may go."""


def shortened(message: str) -> str:
    """A message with its middle left out, if it is longer than anybody reads."""
    if len(message) <= LONGEST:
        return message
    return f"{message[: 2 * LONGEST // 3]} … {message[-LONGEST // 3 :]}"


def first_line(error: BaseException) -> str:
    """Somebody else's error message, cut to one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
