"""How far a text is an answer of a grammar, what may come next, and how it is spelled.

Texts are read leniently (white space anywhere, line ends in strings) and spelled one way, so that whatever a model
writes becomes the beginning of an answer, as far as it means one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_dgemma.text.cursor import SPACE, Cursor, Path, Stop, inside
from mlx_dgemma.text.grammar import (
    BOOLEAN,
    NULL,
    Anything,
    Array,
    Literals,
    Node,
    Number,
    Object,
    String,
    Union,
    spelled,
)
from mlx_dgemma.text.numerals import CHARACTERS, LONGEST, NUMBER, is_viable

Check = Callable[[String | Number, object], bool]


@dataclass(frozen=True)
class Read:
    """What a text is.

    Attributes:
        text: the part of it that is the beginning of an answer, spelled as answers are.
        is_done: whether that is a whole answer.
        options: fixed texts of which one comes next.
        is_free: whether something else can come next too.
        in_string: whether the text ends inside of a string.
        is_layout: whether the options are not values, but ends, commas and keys.
        is_whole: whether nothing of the text was left out.
        starts: where each value begins in `text`.
    """

    text: str
    is_done: bool = False
    options: tuple[str, ...] = ()
    is_free: bool = False
    in_string: bool = False
    is_layout: bool = False
    is_whole: bool = True
    starts: dict[Path, int] = field(default_factory=dict)


def read(node: Node, text: str, *, ended: bool, check: Check, can_escape: bool = True) -> Read:
    """Reads as much of a text as is an answer.

    Args:
        node: the grammar.
        text: any.
        ended: whether the model ended there: then a number or string at its end is over.
        check: whether a whole string or number is allowed.
        can_escape: whether a backslash can be spelled.
    """
    cursor = Cursor(text, ended, can_escape)
    try:
        _Reading(check).value(node, cursor, ())
    except Stop as stop:
        mark = " " if cursor.number_ended and not stop.is_free else ""  # or the number could go on
        return Read(
            cursor.out + mark,
            options=stop.options,
            is_free=stop.is_free,
            in_string=stop.in_string,
            is_layout=stop.is_layout,
            is_whole=not cursor.is_broken,
            starts=cursor.starts,
        )
    return Read(cursor.out, is_done=True, is_whole=not cursor.rest.strip(SPACE), starts=cursor.starts)


class _Reading:
    """Reads values at a cursor; raises `Stop` where the text is over or no answer."""

    def __init__(self, check: Check):
        self.check = check

    def value(self, node: Node, cursor: Cursor, path: Path) -> None:
        """Reads a value of any kind."""
        cursor.starts[path] = len(cursor.out)
        match node:
            case Literals():
                self._literal(node, cursor)
            case String():
                self._string(node, cursor)
            case Number():
                self._number(node, cursor)
            case Object():
                self._object(node, cursor, path)
            case Array():
                self._array(node, cursor, path)
            case Anything():
                kinds = Object(extra=node), Array(node), String(), Number(), BOOLEAN, NULL
                self._union(kinds, cursor, path)
            case Union():
                self._union(node.nodes, cursor, path)

    def _literal(self, node: Literals, cursor: Cursor) -> None:
        cursor.skip()
        rest = cursor.rest
        found = [text for text in node.texts if rest.startswith(text)]
        if not found:
            begun = tuple(text for text in node.texts if rest and text.startswith(rest))
            stop = Stop(begun or node.texts)
            raise stop if begun else cursor.stop(stop)
        longest = max(found, key=len)
        cursor.at += len(longest)
        cursor.emit(longest)

    def _number(self, node: Number, cursor: Cursor) -> None:
        cursor.skip()
        end = cursor.at
        while end < len(cursor.text) and cursor.text[end] in CHARACTERS:
            end += 1
        written = cursor.text[cursor.at : end]
        if end == len(cursor.text) and not cursor.ended:
            if not is_viable(written, node):
                raise cursor.stop(Stop(is_free=True))
            cursor.at = end
            cursor.emit(written)
            raise Stop(is_free=True)
        whole = NUMBER.fullmatch(written) and len(written) <= LONGEST
        if not whole or not self.check(node, json.loads(written)):
            raise cursor.stop(Stop(is_free=True))
        cursor.at = end
        cursor.emit(written)
        cursor.number_ended = True

    def _string(self, node: String, cursor: Cursor) -> None:
        if not cursor.take('"'):
            raise cursor.stop(Stop(('"',)))
        begins = cursor.at
        written, is_closed = cursor.characters(node.most)
        if is_closed and len(written) < node.least:  # the quote is too early
            cursor.at = begins + len(cursor.text[begins : cursor.at].removesuffix('"'))
            cursor.stop(Stop())
            is_closed = False
        is_long = node.most is not None and len(written) > node.most
        if is_long or (is_closed and not self.check(node, written)):
            cursor.at = begins
            raise cursor.stop(Stop(is_free=True, in_string=True))
        cursor.emit(inside(written))
        if not is_closed:
            raise Stop(is_free=True, in_string=True)
        cursor.emit('"')

    def _object(self, node: Object, cursor: Cursor, path: Path) -> None:
        if not cursor.take("{"):
            raise cursor.stop(Stop(("{",)))
        seen = list[str]()
        while True:
            can_close = node.required <= set(seen) and len(seen) >= node.least
            if can_close and cursor.take("}"):
                return
            name = self._key(node, cursor, seen, ("}",) if can_close else ())
            seen.append(name)
            own = dict(node.properties).get(name, node.extra)
            assert own is not None  # a key is a property's, or there may be others
            self.value(own, cursor, (*path, name))

    def _key(self, node: Object, cursor: Cursor, seen: list[str], ends: tuple[str, ...]) -> str:
        """Reads a key with the comma before it and the colon behind it."""
        comes = _next_properties(node, seen)
        is_extra = node.extra is not None and node.required <= set(seen)
        if node.most is not None and len(seen) >= node.most:
            comes, is_extra = [], False
        comma = ", " if seen else ""
        keys = [f"{comma}{spelled(name)}: " for name in comes]
        stop = Stop((*keys, *([comma + '"'] if is_extra else []), *ends), is_layout=True)
        before = cursor.copy()
        if (seen and not cursor.take(",", "")) or not cursor.take('"', ""):
            is_over = not cursor.next
            cursor.become(before)
            raise stop if is_over else cursor.stop(stop)
        written, is_closed = cursor.characters(None)
        if not is_closed and not cursor.is_broken:
            if begun := tuple(key for key, name in zip(keys, comes, strict=True) if name.startswith(written)):
                cursor.out = before.out
                raise Stop(begun, is_layout=True)
            if is_extra:
                cursor.emit(f'{comma}"{inside(written)}')
                raise Stop(is_free=True, in_string=True)
        if not is_closed or written in seen or (written not in comes and not is_extra):
            cursor.become(before)
            raise cursor.stop(stop)
        cursor.emit(f"{comma}{spelled(written)}: ")
        if not cursor.take(":", ""):
            cursor.stop(Stop())
        return written

    def _array(self, node: Array, cursor: Cursor, path: Path) -> None:
        if not cursor.take("["):
            raise cursor.stop(Stop(("[",)))
        seen = list[str]()
        while True:
            item = node.item(len(seen))
            item = _fresh(item, seen) if node.is_set and item is not None else item
            ends = ("]",) if len(seen) >= node.least or item is None else ()
            if ends and cursor.take("]"):
                return
            before = cursor.copy()
            if seen and (item is None or not cursor.take(",", ", ")):
                raise cursor.stop(Stop((*ends, *((", ",) if item is not None else ())), is_layout=True))
            if item is None:
                raise cursor.stop(Stop(ends))
            begins = len(cursor.out)
            self._item(item, cursor, (*path, len(seen)), () if seen else ends)
            if node.is_set and cursor.out[begins:] in seen:
                cursor.become(before)
                raise cursor.stop(Stop((*ends, ", "), is_layout=True))
            seen.append(cursor.out[begins:])

    def _item(self, item: Node, cursor: Cursor, path: Path, ends: tuple[str, ...]) -> None:
        """Reads an item; instead of the first one the array may end."""
        begins = len(cursor.out)
        try:
            self.value(item, cursor, path)
        except Stop as stop:
            if len(cursor.out) == begins:
                stop.options = (*ends, *stop.options)
                stop.is_layout = stop.is_layout or bool(ends)
            raise

    def _union(self, nodes: tuple[Node, ...], cursor: Cursor, path: Path) -> None:
        """The alternative that is a whole value, or else those that get furthest."""
        tried: list[tuple[Cursor, Stop | None]] = []
        for node in nodes:
            own = cursor.copy()
            try:
                self.value(node, own, path)
                tried.append((own, None))
            except Stop as stop:
                tried.append((own, stop))
        furthest = max(len(own.out) for own, _ in tried)
        best = [(own, stop) for own, stop in tried if len(own.out) == furthest]
        if whole := [own for own, stop in best if stop is None]:
            cursor.become(whole[0])
            return
        cursor.become(min((own for own, _ in best), key=lambda own: own.is_broken))
        stops = [stop for _, stop in best if stop is not None]
        raise Stop(
            tuple(dict.fromkeys(option for stop in stops for option in stop.options)),
            is_free=any(stop.is_free for stop in stops),
            in_string=all(stop.in_string for stop in stops),
            is_layout=any(stop.is_layout for stop in stops),
        )


def _next_properties(node: Object, seen: list[str]) -> list[str]:
    """The keys that may come next: those up to the first that has to."""
    names = [name for name, _ in node.properties]
    last = max((names.index(name) for name in seen if name in names), default=-1)
    comes = list[str]()
    for name in names[last + 1 :]:
        comes.append(name)
        if name in node.required:
            break
    return comes


def _fresh(item: Node, seen: list[str]) -> Node | None:
    """What a set may hold besides."""
    if not isinstance(item, Literals):
        return item
    texts = tuple(text for text in item.texts if text not in seen)
    return Literals(texts) if texts else None
