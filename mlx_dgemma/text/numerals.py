"""Whether what was written of a number can still become one that is allowed."""

import re
from collections.abc import Set

from mlx_dgemma.text.grammar import Number

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
CHARACTERS = frozenset("0123456789+-.eE")
_BEGUN = re.compile(r"-?(?:0|[1-9][0-9]*)?(?:(?<=[0-9])\.[0-9]*)?")
DIGITS = 15  # more than a float holds are not begun
LONGEST = 40  # characters of a number


def is_viable(text: str, node: Number) -> bool:
    """Whether digits can be added to a text, or none, so that a number without an exponent is in bounds."""
    if not _BEGUN.fullmatch(text) or sum(map(str.isdigit, text)) > DIGITS:
        return False
    is_negative, body = text.startswith("-"), text.removeprefix("-")
    low, high = (-node.high, -node.low) if is_negative else (node.low, node.high)
    but = {-bound for bound in node.but} if is_negative else node.but
    low = max(low, 0)
    if "." in body:
        begin, step = float(body + "0"), 10.0 ** -len(body.partition(".")[2])
        return not node.is_integer and low < begin + step and (begin < high or (begin == high and high not in but))
    if not body:
        return low <= high
    value, most = int(body), DIGITS - len(body) if body != "0" else 0
    return any(_meet(value * 10**k, (value + 1) * 10**k, low, high, but, node) for k in range(most + 1))


def _meet(begin: int, end: int, low: float, high: float, but: Set[float], node: Number) -> bool:
    """Whether a number from `begin` up to below `end` is in bounds."""
    if not node.is_integer:
        return (begin < high or (begin == high and high not in but)) and low < end
    first, last = max(begin, low), min(end - 1, high)
    multiple = node.multiple
    return first <= last and last // multiple * multiple >= first
