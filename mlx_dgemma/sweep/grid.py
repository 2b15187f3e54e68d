"""The grid: which fields of GenerationConfig take which values. No heavy imports: a mistyped one fails at once."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.sweep import plugins

Value = int | float | str
Settings = dict[str, Value]

# a list of stop tokens has no place on an axis; every other field has one, strategies as the texts that name them


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


_TYPES: dict[object, Callable[[str], Value]] = {int: int, float: float, float | None: float, bool: _flag}
FIELDS: dict[str, Callable[[str], Value]] = {
    f.name: str if f.name in plugins.FIELDS else _TYPES[f.type]
    for f in fields(GenerationConfig)
    if f.name in plugins.FIELDS or f.type in _TYPES
}
_KINDS: dict[object, str] = {int: "an integer", float: "a number", str: "a word", _flag: "true or false"}


@dataclass(frozen=True)
class Grid:
    """Values by field; its points are their product, in the order given. Without fields: one point, no settings."""

    axes: dict[str, list[Value]]

    def points(self) -> list[Settings]:
        return [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]

    def label(self, settings: Settings) -> str:
        """What sets a point apart from the others: its values of the fields that vary."""
        return ", ".join(str(settings[name]) for name in self.varying())

    def sources(self) -> list[Path]:
        """The files that strategies of one's own come from."""
        texts = [str(v) for name in plugins.FIELDS for v in self.axes.get(name, []) if ":" in str(v)]
        return sorted({file for file in map(plugins.source_of, texts) if file is not None})

    def constant(self) -> Settings:
        return {name: values[0] for name, values in self.axes.items() if len(values) == 1}

    def varying(self) -> list[str]:
        return [name for name, values in self.axes.items() if len(values) > 1]


def text_of(settings: Settings) -> str:
    """Settings as they are written on the command line: `entropy_bound=0.1 t_min=0.3`."""
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "the checkpoint's settings"


def parse_grid(assignments: list[str]) -> Grid:
    """The grid of several `field=value,value…`.

    Raises:
        DGemmaError: an unknown or repeated field, a value that the field cannot take, a value given twice, or a
            combination of values that excludes itself.
    """
    axes: dict[str, list[Value]] = {}
    for text in assignments:
        name, values = _parse_axis(text)
        if name in axes:
            raise DGemmaError(f"--set {name} is given twice; list its values in one: {name}=V,V")
        axes[name] = values
    grid = Grid(axes)
    for point in grid.points():
        plugins.settings_of(point)
    return grid


def _parse_axis(text: str) -> tuple[str, list[Value]]:
    name, equals, listed = text.partition("=")
    name = name.strip()
    if not equals:
        raise DGemmaError(f"--set {text} has no value; write field=value,value")
    if name not in FIELDS:
        raise DGemmaError(f"--set {name}: no such field; there are {', '.join(FIELDS)}")
    values = [_parse_value(name, item.strip()) for item in _split(listed)]
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise DGemmaError(f"--set {name}: {twice} is given twice")
    return name, values


def _split(listed: str) -> list[str]:
    """The items between commas that stand in no brackets and no quotes."""
    items, depth, quote = [""], 0, ""
    for character in listed:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and not depth:
            items.append("")
            continue
        items[-1] += character
    return items


def _parse_value(name: str, text: str) -> Value:
    kind = FIELDS[name]
    try:
        value = kind(text)
    except (ValueError, KeyError):
        raise DGemmaError(f"--set {name}: {text!r} is not {_KINDS[kind]}") from None
    try:
        plugins.settings_of({name: value})
    except DGemmaError as error:
        raise DGemmaError(f"--set {error}") from None
    return value
