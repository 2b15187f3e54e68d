"""Patterns of strings in somebody else's schema: refused if Python cannot read them, or if they might never end.

Python's engine goes back and tries again. A repeat of what repeats takes time that doubles with each character; several
in a row take a power of the length. So such patterns are refused, and long texts match none.
"""

import re

from mlx_dgemma.errors import DGemmaError

LONGEST = 200  # characters of a text that is compared with a pattern
REPEATS = 4  # without a bound, in one pattern
LENGTH = 1000  # characters of a pattern
_REPEAT = re.compile(r"[*+]|\{(\d*)(?:,(\d*))?\}")
_FEW = 16  # a repeat of at most so many is none


def check_pattern(pattern: object, where: str) -> None:
    """Raises DGemmaError for what is no pattern, or one that could take forever; the message begins with `where`."""
    if not isinstance(pattern, str) or len(pattern) > LENGTH:
        raise DGemmaError(f"{where}: a pattern is a text of at most {LENGTH} characters")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DGemmaError(f"{where}: pattern {pattern[:40]!r} cannot be read: {error}") from None
    if re.search(r"\\[1-9]|\(\?P=|\(\?<?[=!]|\(\?\(", pattern):
        raise DGemmaError(f"{where}: pattern {pattern[:40]!r} looks back or ahead; give one that does not")
    if _is_hostile(pattern):
        raise DGemmaError(f"{where}: pattern {pattern[:40]!r} could take forever; repeat less inside of repeats")


def _is_hostile(pattern: str) -> bool:
    """Whether a group that repeats holds a repeat or alternatives, or there are too many repeats."""
    groups, at, count = [False], 0, 0  # whether each open group holds one
    closed = False  # what the last item, if it was a group, held
    while at < len(pattern):
        character = pattern[at]
        repeat = _REPEAT.match(pattern, at)
        if character == "\\":
            at, closed = at + 2, False
        elif character == "[":
            at, closed = _behind_class(pattern, at), False
        elif character == "(":
            groups.append(False)
            at, closed = at + 1, False
        elif character == ")":
            closed = groups.pop() if len(groups) > 1 else False
            groups[-1] = groups[-1] or closed
            at += 1
        elif repeat is not None:
            if _is_long(repeat):
                count += 1
                if closed:
                    return True
                groups[-1] = True
            at = repeat.end()
        else:
            groups[-1] = groups[-1] or character == "|"
            at, closed = at + 1, closed and character == "?"
    return count > REPEATS


def _is_long(repeat: re.Match[str]) -> bool:
    if repeat[0] in "*+":
        return True
    least, most = repeat[1] or "0", repeat[2]
    return most == "" or int(most if most is not None else least) > _FEW


def _behind_class(pattern: str, at: int) -> int:
    """Where the class of characters that opens at a place ends."""
    at += 1
    at += pattern[at : at + 1] == "^"
    at += pattern[at : at + 1] == "]"
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1
