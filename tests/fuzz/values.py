"""Values of any Python type, for what takes a value from a program instead of a file."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz import mutations, texts


class Odd:
    """An object that is nothing in particular."""

    def __repr__(self) -> str:
        return "Odd()"


def deep(levels: int = 400) -> list[Any]:
    """A list in a list in a list …"""
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


_MADE: tuple[Callable[[], Any], ...] = (
    Odd, object, lambda: Odd, lambda: len, lambda: b"x", lambda: bytearray(b"x"), lambda: (1, 2), lambda: {1, 2},
    lambda: range(3), lambda: iter([1, 2]), lambda: np.int32(3), lambda: np.float32(0.5), lambda: np.array([1, 2]),
    lambda: np.array(3), lambda: 1j, lambda: ..., deep, lambda: [1] * 100_000, lambda: "x" * 100_000,
    lambda: [10**30], lambda: [-1], lambda: [True], lambda: [1.0], lambda: [np.int64(5)], lambda: [None, 5, None],
    lambda: (None,) * 20, lambda: [2**31], lambda: [99], lambda: [100], lambda: {"role": "user", "content": "x"},
)  # fmt: skip


def value(random: random.Random) -> Any:
    """Anything."""
    way = random.randrange(6)
    if way < 3:
        made = mutations.atom(random)
        return deep() if made is mutations.DEEP else "x" * 200_000 if made is mutations.LONG else made
    if way < 5:
        return random.choice(_MADE)()
    return texts.text(random, 20_000)
