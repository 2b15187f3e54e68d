"""What a model's tokens say: an answer, thoughts, and calls of tools; one state machine over token ids.

    answer  ─ <|channel> ─▶  thought  ─ <channel|> ─▶  answer
    answer, thought  ─ <|tool_call> ─▶  call  ─ <tool_call|> ─▶  where it was

Ids cannot be split, and text that spells a mark is not one. A thought may be open already: the prompt's ids tell. Marks
without a partner say nothing; between an odd number of quote tokens an end of a call is part of a string.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.text.decoding import GrowingText
from mlx_dgemma.text.thoughts import Thoughts
from mlx_dgemma.text.tools import types_of
from mlx_dgemma.text.values import coerced, read_call

MARKS = {
    "open_thought": "<|channel>", "close_thought": "<channel|>", "open_turn": "<|turn>", "quote": '<|"|>',
    "open_call": "<|tool_call>", "close_call": "<tool_call|>", "close_response": "<tool_response|>",
}  # fmt: skip
ENDS = ("<turn|>", "<eos>", "<|tool_response>")
TURN = "model\n"  # what follows the mark that opens one
QUOTE = "\ufdd0"  # stands for the quote token in a call's text; Unicode keeps it out of texts


@dataclass(frozen=True)
class ToolCall:
    """A call that the model makes.

    Attributes:
        id: the same for the same prompt and tokens.
        name: of the tool.
        arguments: JSON values by name, in the types of the tool's schema.
    """

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """A reply, or what some tokens add to one.

    Attributes:
        content: the answer.
        thought: what came before it; several are joined by newlines.
        tool_calls: in order.
        finish_reason: "stop", "tool_calls", "length"; None while more is to come.
    """

    content: str = ""
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None


def parse_reply(
    tokenizer: Tokenizer, ids: Sequence[int], *, prompt: Sequence[int] = (), tools: Sequence[Mapping[str, Any]] = (),
    is_cut: bool = False,
) -> Reply:  # fmt: skip
    """A whole reply; what follows its first end is left out.

    Args:
        tokenizer: of the checkpoint.
        ids: what the model wrote.
        prompt: the ids that it wrote behind: they may have opened a thought.
        tools: schemas, which decide the types of arguments.
        is_cut: whether the budget ended it; a call that is open where no end stands was cut in any case.
    """
    parser = ReplyParser(tokenizer, prompt=prompt, tools=tools)
    ends = {token for name in ENDS if (token := tokenizer.get_vocab().get(name)) is not None}
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    parts = parser.add(ids[:end]), parser.end(is_cut=is_cut or (end is None and parser.is_unfinished))
    calls = tuple(call for part in parts for call in part.tool_calls)
    return Reply("".join(p.content for p in parts), "".join(p.thought for p in parts), calls, parts[-1].finish_reason)


class ReplyParser:
    """The same, as tokens come: all that `add` and `end` give is, joined, what `parse_reply` gives for all tokens."""

    def __init__(
        self, tokenizer: Tokenizer, *, prompt: Sequence[int] = (), tools: Sequence[Mapping[str, Any]] = (),
        given: Sequence[int | None] = (), one_call: bool = False,
    ):  # fmt: skip
        """`given`: tokens of the reply that are the user's: they show, unless the user opened the thought or call.

        `one_call`: nothing is read behind the first call's end.
        """
        self.tokenizer, self.given, self._one_call = tokenizer, given, one_call
        vocabulary = tokenizer.get_vocab()
        self._marks = {vocabulary[name]: mark for mark, name in MARKS.items() if name in vocabulary}
        self._types = types_of(tools)
        self._seed = repr(list(prompt)).encode()
        self._answer, self._thoughts = GrowingText(tokenizer), Thoughts(tokenizer)
        self._call: _OpenCall | None = None
        self._turn: list[int] | None = None  # tokens behind a mark that opens a turn
        self._new: list[int] = []  # of the answer, not decoded yet
        self._positions: list[int] = []  # in the reply, of all the answer's tokens
        self._calls: list[ToolCall] = []
        self._told = 0  # calls
        self.position = self.thought_tokens = 0  # tokens that were read, and those of them that are thoughts
        opening = _open_thought(prompt, self._marks)
        if opening is not None:
            self._thoughts.open(prompt[opening + 1 :])

    @property
    def is_unfinished(self) -> bool:
        """Whether a call has no end yet."""
        return self._call is not None and not self._call.has_end

    @property
    def has_called(self) -> bool:
        """Whether the only call was made that is wanted."""
        return self._one_call and bool(self._calls)

    def add(self, ids: Sequence[int]) -> Reply:
        """What the next tokens add."""
        for token in ids:
            if self.has_called:
                break
            at = self.position
            self._take(token, at < len(self.given) and self.given[at] is not None)
            self.position += not (self.has_called and self._call)  # the mark that opens a second call is not read
        return self._reply(self._thoughts.flush(), None)

    def end(self, *, is_cut: bool) -> Reply:
        """What the end adds; `is_cut` if it is not the model's."""
        while self._call is not None and not self.has_called:
            has_end, rest = self._call.has_end, self._end_call(is_cut=is_cut)
            for token in rest if has_end and not self.has_called else ():  # behind an end that seemed part of a string
                self._take(token, False)
        if self._turn is not None:
            self._end_turn()
        self._thoughts.close(is_cut=is_cut)
        reason = "length" if is_cut else "tool_calls" if self._calls else "stop"
        return self._reply(self._thoughts.flush(), reason)

    def thought_end(self, ids: Sequence[int]) -> int | None:
        """Behind which of the next tokens the thought ends: 0 if there is none, None if it goes on."""
        is_open = self._thoughts.is_open
        for at, token in enumerate(ids):
            if self._marks.get(token) == "close_thought" and is_open:
                return at + 1
            is_open = is_open or self._marks.get(token) == "open_thought"
        return None if is_open else 0

    def position_of(self, characters: int) -> int:
        """Where in the reply's tokens the first so many characters of the answer end."""
        first, last = 0, len(self._answer.tokens) - 1
        while first < last:
            middle = (first + last) // 2
            text = self.tokenizer.decode(self._answer.tokens[: middle + 1], skip_special_tokens=True)
            first, last = (first, middle) if len(text) >= characters else (middle + 1, last)
        return self._positions[first]

    def positions_from(self, first: int) -> list[int]:
        """Where the answer's tokens stand in the reply, from a position on."""
        return self._positions[bisect_left(self._positions, first) :]

    def _say(self, token: int) -> None:
        self._new.append(token)
        self._positions.append(self.position)

    def _reply(self, thought: str, reason: str | None) -> Reply:
        content = self._answer.add(self._new, final=reason is not None, is_cut=reason == "length")
        calls = tuple(self._calls[self._told :])
        self._new, self._told = [], len(self._calls)
        return Reply(content, thought, calls, reason)

    def _take(self, token: int, is_given: bool) -> None:
        mark = self._marks.get(token)
        is_users = is_given and mark is None
        if self._call is not None:
            if is_users and not self._call.is_users:
                self._say(token)
            elif self._call.add(token, mark):
                self._end_call(is_cut=False)
                if mark == "open_call":
                    self._call = _OpenCall(is_given)
        elif mark is not None:
            self._at_mark(mark, is_given)
        elif self._turn is not None:
            self._turn.append(token)
            text = self.tokenizer.decode(self._turn, skip_special_tokens=True)
            if text == TURN or not TURN.startswith(text):
                self._end_turn()
        elif self._thoughts.is_open and not (is_users and not self._thoughts.is_users):
            self._thoughts.add(token)
            self.thought_tokens += 1
        else:
            self._say(token)

    def _at_mark(self, mark: str, is_given: bool) -> None:
        """A mark outside of calls; an end of nothing says nothing."""
        if mark in ("open_thought", "close_thought"):
            self.thought_tokens += 1
            self._thoughts.close(is_cut=False)
        if mark == "open_thought":
            self._thoughts.open(is_users=is_given)
        elif mark == "open_call":
            self._call = _OpenCall(is_given)
        elif mark == "open_turn":
            self._turn = []

    def _end_turn(self) -> None:
        """Leaves out the name of the turn that the model opened once more."""
        ids, self._turn = self._turn or [], None
        if self.tokenizer.decode(ids, skip_special_tokens=True) != TURN:
            for token in ids:
                self._say(token)

    def _end_call(self, *, is_cut: bool) -> list[int]:
        """Reads the call that is open; the tokens behind its end."""
        call, self._call = self._call, None
        if call is None:
            return []
        ids, rest = call.parts()
        read = read_call(self._spelled(ids), QUOTE, is_cut=is_cut and not call.has_end)
        if read is not None:
            identity = hashlib.sha256(self._seed + repr((len(self._calls), ids)).encode()).hexdigest()[:24]
            types = self._types.get(read.name, {}).get("properties", {})
            arguments = {key: coerced(value, types.get(key)) for key, value in read.arguments.items()}
            self._calls.append(ToolCall(f"call_{identity}", read.name, arguments))
        return rest

    def _spelled(self, ids: Sequence[int]) -> str:
        """A call's text; marks that are part of a string are spelled out."""
        texts = []
        for is_quote, run in groupby(ids, key=lambda token: self._marks.get(token) == "quote"):
            tokens = list(run)
            texts.append(QUOTE * len(tokens) if is_quote else self.tokenizer.decode(tokens).replace(QUOTE, ""))
        return "".join(texts)


class _OpenCall:
    """The tokens of a call that is open."""

    def __init__(self, is_users: bool):
        self.is_users = is_users  # opened by a given token
        self._ids: list[int] = []
        self._in_string = False
        self._end: int | None = None  # where an end stands that may be part of a string

    @property
    def has_end(self) -> bool:
        return self._in_string and self._end is not None

    def add(self, token: int, mark: str | None) -> bool:
        """Takes a token, or says that it ends the call."""
        if mark == "quote":
            self._in_string, self._end = not self._in_string, None
        elif (mark == "close_call" and not self._in_string) or (
            mark == "open_call" and (not self._in_string or self._end == len(self._ids) - 1)
        ):
            return True
        elif mark == "close_call" and self._end is None:
            self._end = len(self._ids)
        self._ids.append(token)
        return False

    def parts(self) -> tuple[list[int], list[int]]:
        """The call's tokens, and those behind the end of a call whose last string never ended."""
        if self._end is None or not self._in_string:
            return self._ids, []
        return self._ids[: self._end], self._ids[self._end + 1 :]


def _open_thought(prompt: Sequence[int], marks: dict[int, str]) -> int | None:
    """Where a prompt opens a thought that it does not close."""
    for at in reversed(range(len(prompt))):
        if (mark := marks.get(prompt[at])) in ("open_thought", "close_thought"):
            return at if mark == "open_thought" else None
    return None
