"""How a command is to be shared among processes. No heavy imports."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_dgemma.errors import DGemmaError

MOST = 1000  # of a share; they are whole numbers, which every rank reads alike
MEASURED = "measured"
MODES = ("canvas",)


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        shares: how much each rank takes, relative to the others; all alike if there are none.
        is_measured: whether they are found by how fast the ranks are.
    """

    shares: Sequence[int] = ()
    is_measured: bool = False

    @classmethod
    def of(cls, shares: str | None) -> "Plan":
        """From what was typed, "3,1" or "measured".

        Raises:
            DGemmaError: anything else.
        """
        if shares is None:
            return cls()
        if shares == MEASURED:
            return cls(is_measured=True)
        parts = shares.split(",")
        if not all(part.isascii() and part.isdecimal() and 0 < int(part) <= MOST for part in parts):
            raise DGemmaError(f"--shares takes whole numbers from 1 to {MOST}, as 3,1, or {MEASURED}; got {shares!r}")
        return cls([int(part) for part in parts])
