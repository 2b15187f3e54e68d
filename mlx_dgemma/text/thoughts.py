"""The text of thoughts: without their label, without newlines at their ends, several joined by newlines."""

from collections.abc import Sequence

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.text.decoding import GrowingText

LABEL = "thought\n"  # what follows the mark that opens one


class Thoughts:
    """The text of thoughts, joined by newlines; without their label, and without newlines at their ends."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._text: GrowingText | None = None
        self.is_users = False  # opened by a given token
        self._ids: list[int] = []  # not decoded yet
        self._shown = 0  # characters of the open one
        self._said = self._is_next = False
        self._new = ""

    @property
    def is_open(self) -> bool:
        return self._text is not None

    def open(self, already: Sequence[int] = (), *, is_users: bool = False) -> None:
        """Begins a thought, of which the prompt may hold tokens already."""
        self._text, self.is_users, self._ids, self._is_next = GrowingText(self._tokenizer), is_users, [], self._said
        self._text.add(list(already), final=False)
        self._shown = len(self._body(final=False))

    def add(self, token: int) -> None:
        self._ids.append(token)

    def close(self, *, is_cut: bool) -> None:
        if self._text is not None:
            self._decode(final=True, is_cut=is_cut)
            self._text = None

    def flush(self) -> str:
        """What was added since the last time."""
        self._decode(final=False, is_cut=False)
        new, self._new = self._new, ""
        return new

    def _decode(self, *, final: bool, is_cut: bool) -> None:
        if self._text is None:
            return
        self._text.add(self._ids, final=final, is_cut=is_cut)
        self._ids = []
        body = self._body(final=final)
        added, self._shown = body[self._shown :], max(self._shown, len(body))
        if added:
            self._new += ("\n" if self._is_next else "") + added
            self._said, self._is_next = True, False

    def _body(self, *, final: bool) -> str:
        text = self._text.text if self._text else ""
        if text.startswith(LABEL):
            text = text[len(LABEL) :]
        elif LABEL.startswith(text) and (not final or text == LABEL.strip()):
            return ""  # perhaps the label, or nothing but the label
        return text.rstrip("\n")
