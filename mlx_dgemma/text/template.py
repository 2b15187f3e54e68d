"""Templates: text with gaps, and drafts, as steered canvases.

`{10}` is a gap of ten tokens, `{}` at the very end leaves the rest free, `\\{10}` is the text `{10}`, `{?}` a slot of
`choose`. Other braces are themselves, so that JSON skeletons can be written as they are: `{"name": "{6}", "age": {2}}`.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.prompts import encode
from mlx_dgemma.text.request import CanvasPlan

MAX_GAP = 1 << 20  # tokens: longer than any context
_GAP = re.compile(r"(?<!\\)\{(\d*|\?)\}")


def given_and_draft(
    tokenizer: Tokenizer | None, plan: CanvasPlan, end: Sequence[int], canvas: int
) -> tuple[Sequence[int | None], Sequence[int]]:
    """The token ids of a plan, whose texts become those of `parse_template` and `parse_draft`."""
    given, draft = plan.given, plan.draft
    return (
        parse_template(tokenizer, given, end, canvas) if isinstance(given, str) else given,
        parse_draft(tokenizer, draft, end, canvas) if isinstance(draft, str) else draft,
    )


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


def parse_template(tokenizer: Tokenizer | None, template: str, end: Sequence[int], canvas: int) -> list[int | None]:
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
    return ids if is_open or not end else [*ids, *ending(tokenizer, len(ids), end, canvas)]


def parse_pieces(tokenizer: Tokenizer | None, template: str) -> tuple[list[Piece], bool]:
    """The pieces of a template in order, and whether `{}` leaves open what follows.

    Spaces before a slot go with it: in most vocabularies they are part of the token that follows.

    Raises:
        DGemmaError: no tokenizer, a gap of no tokens, `{}` before the end.
    """
    if not isinstance(template, str):
        raise DGemmaError(f"template: it is a {type(template).__name__}; give a text with gaps like {{10}}")
    pieces, position = [], 0
    for gap in _GAP.finditer(template):
        text, position = template[position : gap.start()], gap.end()
        spaces = text[len(text.rstrip(" ")) :] if gap[1] == "?" else ""
        pieces.append(Piece(tuple(_encode(tokenizer, text.removesuffix(spaces)))))
        if gap[1] == "?":
            pieces.append(Piece(is_slot=True, spaces=spaces))
        elif gap[1]:
            pieces.append(Piece((None,) * _length(gap[1])))
        elif position == len(template):
            return pieces, True
        else:
            raise DGemmaError(
                "template: {} leaves the rest free and must stand at the end; give gaps a length, {10} say"
            )
    return [*pieces, Piece(tuple(_encode(tokenizer, template[position:])))], False


def _length(digits: str) -> int:
    """Of a gap, in tokens."""
    shown = digits if len(digits) <= 12 else f"{digits[:9]}…"
    if len(digits) > 12 or int(digits) > MAX_GAP:
        raise DGemmaError(f"template: a gap {{{shown}}} is longer than any context; give at most {MAX_GAP} tokens")
    if int(digits) == 0:
        raise DGemmaError("template: a gap {0} holds no token; give its length, {10} say")
    return int(digits)


def parse_draft(tokenizer: Tokenizer | None, text: str, end: Sequence[int], canvas: int) -> list[int]:
    """Token ids of a draft, then the first `end` id and padding, as a whole canvas.

    Raises:
        DGemmaError: no tokenizer, a draft that is empty or does not fit a canvas with its end.
    """
    ids = _encode(tokenizer, text, "the draft")
    room = canvas - bool(end)
    if not 0 < len(ids) <= room:
        raise DGemmaError(f"the draft has {len(ids)} tokens; give 1 to {room}, which one canvas holds with its end")
    return [*ids, *ending(tokenizer, len(ids), end, canvas)] if end else ids


def ending(tokenizer: Tokenizer | None, length: int, end: Sequence[int], canvas: int) -> list[int]:
    """What follows so many ids: the first `end` id, and padding up to a multiple of `canvas`."""
    pad = None if tokenizer is None else tokenizer.pad_token_id
    return [end[0], *[end[0] if pad is None else pad] * (-(length + 1) % canvas)]


def _encode(tokenizer: Tokenizer | None, text: str, what: str = "template") -> list[int]:
    """Token ids of a piece of text, without special tokens."""
    if tokenizer is None:
        raise DGemmaError("the checkpoint has no tokenizer files; give canvas=[token ids or None]")
    return encode(tokenizer, text.replace("\\{", "{"), what) if text else []
