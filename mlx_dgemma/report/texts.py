"""What a report draws for tokens and texts: pictures in place of what could act, an end, a filler behind it."""

from collections.abc import Collection

import numpy as np

from mlx_dgemma.terminal.plain import drawable
from mlx_dgemma.terminal.watch import UNCERTAIN, TokenTexts, levels, text_end
from mlx_dgemma.trace.trace import Trace

SCALE = (0.0, *UNCERTAIN, 5.0)  # nats at which page and plots have their five colours: the same for every run


class RecordedTexts(TokenTexts):
    """What to draw for a token id, from the texts of a trace; no tokenizer is needed."""

    def __init__(self, trace: Trace):
        super().__init__(None)
        self.update((token, drawable(piece)) for token, piece in trace.pieces.items())


def shown(text: str) -> str:
    """A text as a report shows it: control, direction and format characters as pictures, newlines as they are."""
    return text and drawable(text)


def one_line(text: str, length: int) -> str:
    """A text on one line of at most so many characters."""
    line = " ".join(shown(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def stops(trace: Trace) -> Collection[int]:
    """Ids of the stop tokens."""
    return frozenset(trace.settings.get("eos_token_id") or ())


def has_settled(trace: Trace) -> bool:
    """Whether any step left positions out."""
    return not trace.computed.all()


def ends(trace: Trace) -> np.ndarray:
    """Where the draft's text ends at every step, (S, B): the position of its stop token, C where there is none."""
    ids = stops(trace)
    steps, rows, positions = trace.draft.shape
    found = np.full((steps, rows), positions)
    for step, row in np.argwhere(np.isin(trace.draft, list(ids)).any(2)):
        clamped = trace.clamped[step, row].tolist()
        states = levels(trace.entropy[step, row].tolist(), trace.accepted[step, row].tolist(), clamped)
        found[step, row] = text_end(trace.draft[step, row].tolist(), states, clamped, ids)
    return found
