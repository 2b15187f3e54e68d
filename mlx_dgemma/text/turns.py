"""Turns of our own that ended in calls: their raw ids take the place of what a client's history makes of them.

A template writes history without its thoughts, and the model would go on behind results as if it had never thought. So
a turn is kept by the ids of its calls; while the same conversation goes on behind them, its own tokens are the prompt.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_dgemma.text.messages import Message
from mlx_dgemma.text.reply import ToolCall

MOST = 256  # turns that are kept


@dataclass(frozen=True)
class Turn:
    """A turn that ended in calls.

    Attributes:
        rendered: the prompt's ids as the template wrote them.
        ids: the prompt's ids as they were, which may hold an earlier turn's.
        reply: what the model wrote, up to the token that waits for results.
    """

    rendered: tuple[int, ...]
    ids: tuple[int, ...]
    reply: tuple[int, ...]


class Turns:
    """The last turns by the ids of their calls; the least recently used goes first."""

    def __init__(self, most: int = MOST):
        self._most = most
        self._turns: OrderedDict[frozenset[str], Turn] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, calls: Sequence[ToolCall], turn: Turn) -> None:
        """Keeps a turn."""
        key = frozenset(call.id for call in calls)
        with self._lock:
            self._turns[key] = turn
            self._turns.move_to_end(key)
            while len(self._turns) > self._most:
                self._turns.popitem(last=False)

    def spliced(
        self, messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[int]]
    ) -> list[int] | None:
        """The prompt's ids with the last turn's own; None if that is not known, or not what it was.

        Args:
            messages: normalised; only behind the last of the user's are thoughts still in sight.
            encode: messages to ids, through the template.
        """
        last = next((i for i in reversed(range(len(messages))) if "tool_calls" in messages[i]), None)
        if last is None or any(message["role"] == "user" for message in messages[last:]):
            return None
        key = frozenset(call["id"] for call in messages[last]["tool_calls"])
        with self._lock:
            turn = self._turns.get(key)
            if turn is None:
                return None
            self._turns.move_to_end(key)
        before = messages[last - 1] if last else {}
        begin = last - 1 if before.get("role") == "assistant" and "tool_calls" not in before else last
        called, whole = encode(messages[: last + 1]), encode(messages)
        if tuple(encode(messages[:begin])) != turn.rendered or whole[: len(called)] != called:
            return None  # the client changed what came before, or the template writes results elsewhere
        return [*turn.ids, *turn.reply, *whole[len(called) :]]
