"""Changes to JSON and to bytes. A change has a seed of its own, so that a failing input can be tried without it."""

import json
import random
from collections.abc import Iterable
from typing import Any

DEEP, LONG = "@deep@", "@long@"  # become what Python's own encoder could not write, or nobody could read
ATOMS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, -0.0, 1e-9, 5e-324, 1e30, 1e308, 255, 2**31 - 1, 2**31, 2**32,
    2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 10**30, 10**400, float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "0", "nan", "null", "\x00", "\x1b[2J", "\ud800", "a\nb", "é", "🙂", "../x", "/etc/passwd",
    [], [0], [None], ["x"], [[]], [1, "x", None], {}, {"a": 1}, {"": None}, DEEP, LONG,
)  # fmt: skip


def seeds(random: random.Random, most: int = 3) -> tuple[int, ...]:
    """Of one or a few changes; more are rare, as one alone goes deepest."""
    return tuple(random.randrange(2**32) for _ in range(random.choice([1] * 3 * most + list(range(2, most + 1)))))


def atom(random: random.Random) -> Any:
    """A value that few expect."""
    return random.choice(ATOMS)


def edited(content: Any, changes: tuple[int, ...]) -> bytes:
    """The JSON of `content` after these changes: of values mostly, and of the text itself."""
    content, spoilers = json.loads(json.dumps(content)), []
    for seed in changes:
        chance = random.Random(seed)
        if chance.random() < 0.85:
            content = _edit(content, chance)
        else:
            spoilers.append(chance)
    text = json.dumps(content, indent=1)
    text = text.replace(f'"{DEEP}"', "[" * 100_000).replace(LONG, "long " * 40_000)
    data = text.encode()
    for chance in spoilers:
        data = spoiled(data, chance)
    return data


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


def _edit(content: Any, random: random.Random) -> Any:
    """One value anywhere is dropped, replaced, wrapped, moved or added."""
    places = _places(content)
    *path, key = random.choice(places[1:]) if len(places) > 1 else (None,)
    if key is None or random.random() < 0.01:
        return atom(random)
    holder = _at(content, path)
    way = random.choice(["drop", "replace", "replace", "replace", "wrap", "scale", "move", "add"])
    if way == "drop":
        del holder[key]
    elif way == "add" and isinstance(holder, dict):
        holder[random.choice(["", "x", "__class__", "given", "quantization", "per_layer_config"])] = atom(random)
    elif way == "add":
        holder.insert(key, atom(random))
    elif way == "move":
        holder[key] = json.loads(json.dumps(_at(content, random.choice(places))))
    else:
        holder[key] = _changed(holder[key], way, random)
    return content


def _at(content: Any, path: Iterable[Any]) -> Any:
    for step in path:
        content = content[step]
    return content


def _changed(value: Any, way: str, random: random.Random) -> Any:
    if way == "wrap":
        return random.choice([[value], {"x": value}, [value, value], str(value), [[[value]]]])
    if way == "scale" and type(value) in (int, float) and abs(value) < 10**300:  # others cannot be halved
        return random.choice([-value, value + 1, value - 1, value * 2, value / 2, value * 10**6, float(value)])
    return atom(random)


def spoiled(data: bytes, random: random.Random) -> bytes:
    """One change of the bytes: cut, empty, flipped, doubled, another encoding, what no encoding has."""
    place = random.randrange(len(data) + 1)
    length = random.choice([1, 1, 2, 8, 100])
    flipped = bytes(random.randrange(256) for _ in range(length))
    text = data.decode("utf-8", "replace")
    return random.choice([
        lambda: data[:place],
        lambda: b"",
        lambda: data[:place] + flipped + data[place + length :],
        lambda: data[:place] + flipped + data[place:],
        lambda: data[:place] + data[place + length :],
        lambda: data[:place] + data[max(0, place - length) :],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-32-le"),
        lambda: data[:place] + b"\xff\xfe" + data[place:],
        lambda: data + b"\x00" * length,
        lambda: b"\x00" * len(data),
        lambda: b"[" * 100_000,
        lambda: data + data,
        lambda: data.replace(b"{", b'{"a": 1, "a": 2, ', 1),
        lambda: data.replace(b": ", b": 1e999 , ", 1),
    ])()  # fmt: skip
