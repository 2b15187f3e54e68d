"""Single fields of a config.json; every complaint names the field, in one line."""

import sys
from typing import Any

from mlx_dgemma.errors import DGemmaError


def positive_int(values: dict[str, Any], name: str, default: int | None = None, section: str = "text_config.") -> int:
    """A size. An absent one takes the default, if there is one."""
    value = values.get(name, default)
    if value is None:
        raise DGemmaError(f"{section}{name} is missing")
    if type(value) is not int or not 0 < value < 2**31:
        raise DGemmaError(f"{section}{name} is {value!r}, it must be a positive integer")
    return value


def positive_float(
    values: dict[str, Any], name: str, default: float | None = None, section: str = "text_config."
) -> float:
    """A number that is finite and above 0."""
    value = values.get(name, default)
    if value is None:
        raise DGemmaError(f"{section}{name} is missing")
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise DGemmaError(f"{section}{name} is {value!r}, it must be a positive number")
    return float(value)


def refuse_unsupported(values: dict[str, Any], supported: dict[str, tuple[Any, ...]], section: str) -> None:
    """Refuses a field whose value is not among those that this package computes; what is absent is no field."""
    for name, allowed in supported.items():
        if name in values and values[name] not in allowed:
            listed = " or ".join(map(repr, allowed))
            raise DGemmaError(f"{section}{name} is {values[name]!r}, only {listed} is supported")
