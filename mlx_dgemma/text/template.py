"""Templates: text with gaps, and drafts, as steered canvases.

`{10}` is a gap of ten tokens, `{}` at the very end leaves the rest free, `\\{10}` is the text `{10}`, `{?}` a slot of
`choose`. Other braces are themselves, so that JSON skeletons can be written as they are: `{"name": "{6}", "age": {2}}`.
"""

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_dgemma.diffusion.steering import Steering
from mlx_dgemma.errors import DGemmaError

_GAP = re.compile(r"(?<!\\)\{(\d*|\?)\}")


@dataclass(frozen=True)
class CanvasPlan:
    """What the canvases of a generation start from.

    Attributes:
        given: token ids by position, None where the model fills in; over as many canvases as it takes.
        draft: token ids that the first canvas starts from instead of noise.
        noise: share of the draft that is replaced by noise, 0 … 1.
        seed: chooses which.
    """

    given: Sequence[int | None] = ()
    draft: Sequence[int] = ()
    noise: float = 0.0
    seed: int = 0

    def steerings(self, canvas: int, vocab_size: int) -> list[Steering]:
        """One Steering a canvas of that length.

        Raises:
            DGemmaError: an id outside the vocabulary, a draft longer than a canvas, a share outside 0 … 1.
        """
        for token in (*self.given, *self.draft):
            if token is not None and not (type(token) is int and 0 <= token < vocab_size):
                raise DGemmaError(f"canvas: token id {token!r} is outside the vocabulary (0 … {vocab_size - 1})")
        if not 0 <= self.noise <= 1:
            raise DGemmaError(f"the share of noise is {self.noise}; give a number from 0 to 1")
        if len(self.draft) > canvas:
            raise DGemmaError(f"the draft has {len(self.draft)} tokens, one canvas has {canvas}; shorten it")
        parts = [self.given[start : start + canvas] for start in range(0, len(self.given), canvas)]
        if self.draft and not parts:
            parts = [()]
        return [self._steering(part, canvas, is_first=i == 0) for i, part in enumerate(parts)]

    def _steering(self, part: Sequence[int | None], canvas: int, *, is_first: bool) -> Steering:
        tokens = [*part, *[None] * (canvas - len(part))]
        is_steered = any(token is not None for token in tokens)
        given = mx.array([[token or 0 for token in tokens]]) if is_steered else None
        clamped = mx.array([[token is not None for token in tokens]]) if is_steered else None
        if not (is_first and self.draft):
            return Steering(given, clamped)
        replaced = set(random.Random(self.seed).sample(range(len(self.draft)), round(self.noise * len(self.draft))))
        keep = [i < len(self.draft) and i not in replaced for i in range(canvas)]
        draft = [*self.draft, *[0] * (canvas - len(self.draft))]
        return Steering(given, clamped, mx.array([draft]), mx.array([keep]))


def given_end(given: Sequence[int | None], stops: Collection[int]) -> int:
    """Where given text ends, in tokens; stop tokens that the model puts into gaps before that end nothing."""
    first_stop = next((i for i, token in enumerate(given) if token in stops), len(given))
    return max((i + 1 for i in range(first_stop) if given[i] is not None), default=0)


@dataclass(frozen=True)
class Piece:
    """Part of a template: token ids, None in gaps; or a slot, with the spaces before it."""

    ids: tuple[int | None, ...] = ()
    is_slot: bool = False
    spaces: str = ""


def parse_template(tokenizer: Any, template: str, end: Sequence[int], canvas: int) -> list[int | None]:
    """Token ids of a template, None in its gaps; after its last token the first `end` id, then padding of the canvas.

    Args:
        tokenizer: from `load`.
        template: see the module's description.
        end: stop ids; none leaves what follows the template free, as a final `{}` does.
        canvas: positions of a canvas.

    Raises:
        DGemmaError: no tokenizer, an empty template, a gap of no tokens, `{}` before the end, a slot.
    """
    pieces, is_open = parse_pieces(tokenizer, template)
    if any(piece.is_slot for piece in pieces):
        raise DGemmaError("template: {?} is a slot to choose a label for; give labels, or a gap like {10} instead")
    ids = [token for piece in pieces for token in piece.ids]
    if not ids and not is_open:
        raise DGemmaError("the template is empty; give a text with gaps like {10}")
    return ids if is_open or not end else closed(tokenizer, ids, end, canvas)


def parse_pieces(tokenizer: Any, template: str) -> tuple[list[Piece], bool]:
    """The pieces of a template in order, and whether `{}` leaves open what follows.

    Spaces before a slot go with it: in most vocabularies they are part of the token that follows.

    Raises:
        DGemmaError: no tokenizer, a gap of no tokens, `{}` before the end.
    """
    pieces, position = [], 0
    for gap in _GAP.finditer(template):
        text, position = template[position : gap.start()], gap.end()
        spaces = text[len(text.rstrip(" ")) :] if gap[1] == "?" else ""
        pieces.append(Piece(tuple(encode(tokenizer, text.removesuffix(spaces)))))
        if gap[1] == "?":
            pieces.append(Piece(is_slot=True, spaces=spaces))
        elif gap[1]:
            if int(gap[1]) == 0:
                raise DGemmaError("template: a gap {0} holds no token; give its length, {10} say")
            pieces.append(Piece((None,) * int(gap[1])))
        elif position == len(template):
            return pieces, True
        else:
            raise DGemmaError(
                "template: {} leaves the rest free and must stand at the end; give gaps a length, {10} say"
            )
    return [*pieces, Piece(tuple(encode(tokenizer, template[position:])))], False


def parse_draft(tokenizer: Any, text: str, end: Sequence[int], canvas: int) -> list[int]:
    """Token ids of a draft, then the first `end` id and padding, as a whole canvas.

    Raises:
        DGemmaError: no tokenizer, a draft that is empty or does not fit a canvas with its end.
    """
    ids = encode(tokenizer, text)
    room = canvas - bool(end)
    if not 0 < len(ids) <= room:
        raise DGemmaError(f"the draft has {len(ids)} tokens; give 1 to {room}, which one canvas holds with its end")
    return closed(tokenizer, ids, end, canvas) if end else ids


def closed(tokenizer: Any, ids: list[int | None], end: Sequence[int], canvas: int) -> list[int | None]:
    """The ids, the first `end` id, and padding up to a multiple of `canvas`."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end[0]
    ids = [*ids, end[0]]
    return ids + [pad] * (-len(ids) % canvas)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a piece of text, without special tokens."""
    if tokenizer is None:
        raise DGemmaError("the checkpoint has no tokenizer files; give canvas=[token ids or None]")
    return tokenizer.encode(text.replace("\\{", "{"), add_special_tokens=False) if text else []
