"""What is typed: questions, images before them, and commands, with each one's help and what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_dgemma.chat.images import Attached, paths_in, unquoted
from mlx_dgemma.chat.session import Question, Session
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import check_writable
from mlx_dgemma.terminal.inputs import read_tools
from mlx_dgemma.text.messages import text_of

Look = Callable[[str, int | None], Attached]  # at the file of an image, with so many tokens; see `images.attach`


@dataclass
class Chat:
    """A conversation, and what was asked for beside it.

    Attributes:
        session: the conversation.
        look: reads the file of an image.
        images: that the next question takes along.
        ask: a question to ask next.
        goes_on: whether the model goes on behind the results of its calls.
        trace: file to record the next answer in.
        told: about the last answer, for /stats.
        is_over: whether to leave.
    """

    session: Session
    look: Look
    images: list[Attached] = field(default_factory=list)
    ask: Question | None = None
    goes_on: bool = False
    trace: str | None = None
    told: str = "nothing was asked yet"
    is_over: bool = False

    def attach(self, paths: Sequence[str]) -> str:
        """Takes images along with the next question; a word on each.

        Raises:
            DGemmaError: one that cannot be read, or not be seen; then none is taken.
        """
        new = [self.look(path, self.session.image_tokens) for path in paths]
        self.images += new
        return "\n".join(f"attached: {own.about}" for own in new)

    def answered(self, question: Question | None) -> None:
        """What a question took along is not taken again."""
        sent = [id(part) for part in question] if isinstance(question, list) else []
        self.images = [own for own in self.images if id(own.part) not in sent]


Command = Callable[[Chat, str], str | None]


def heed(chat: Chat, typed: str) -> str | None:
    """Does what a line says, or notes what it asks; a word on it, None where there is none.

    Names of images' files are attached. They come before commands, as both may begin with a slash.

    Raises:
        DGemmaError: no such command, or what it cannot do; an image that cannot be seen.
    """
    paths, text = paths_in(typed)
    if not paths and typed.startswith("/"):
        return obey(chat, typed)
    told = chat.attach(paths) if paths else None
    if text.strip():
        parts = [own.part for own in chat.images]
        chat.ask = [*parts, {"type": "text", "text": text}] if parts else text
    return told


def obey(chat: Chat, typed: str) -> str | None:
    """Does what a line that begins with a slash says; a word on it, None where there is none.

    Raises:
        DGemmaError: no such command, or what it cannot do.
    """
    name, _, argument = typed.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise DGemmaError(f"no command {name}; /help lists them")
    return command[1](chat, argument.strip())


def _help(chat: Chat, argument: str) -> str:
    width = max(map(len, (f"{name} {about[0][0]}" for name, about in COMMANDS.items())))
    return "\n".join(f"{f'{name} {about[0][0]}':{width}}  {about[0][1]}" for name, about in COMMANDS.items())


def _clear(chat: Chat, argument: str) -> str:
    chat.session.messages, chat.images = [], []
    return "forgotten"


def _system(chat: Chat, argument: str) -> str:
    chat.session.system = argument or None
    return f"system: {argument}" if argument else "no system turn"


def _think(chat: Chat, argument: str) -> str:
    if argument not in ("", "on", "off"):
        raise DGemmaError(f"/think takes on or off, not {argument!r}")
    chat.session.thinking = argument == "on" if argument else not chat.session.thinking
    return f"thinking is {'on' if chat.session.thinking else 'off'}"


def _tools(chat: Chat, argument: str) -> str:
    if not argument:
        return f"{len(chat.session.tools)} tools"
    chat.session.tools = () if argument == "off" else tuple(read_tools(argument))
    return f"{len(chat.session.tools)} tools"


def _result(chat: Chat, argument: str) -> str | None:
    if not argument:
        raise DGemmaError("/result takes what the tool found: /result rain")
    chat.goes_on = chat.session.add_result(argument)
    return None if chat.goes_on else "another call waits for a result"


def _image(chat: Chat, argument: str) -> str:
    if argument == "off":
        count, chat.images = len(chat.images), []
        return f"{count} image{'s' * (count != 1)} dropped"
    if argument:
        paths, name = paths_in(argument)  # the rest is one more name, that of no image
        return chat.attach([*paths, unquoted(name)] if name else paths)
    return "\n".join(own.about for own in chat.images) or "no image is attached"


def _set(chat: Chat, argument: str) -> str:
    name, _, value = argument.partition(" ")
    if not value.strip():
        raise DGemmaError("/set takes a field and a value: /set entropy_bound 0.2")
    chat.session.set(name, value.strip())
    return f"{name} is {value.strip()}"


def _retry(chat: Chat, argument: str) -> None:
    chat.ask = chat.session.undo()
    if chat.ask is None:
        raise DGemmaError("there is nothing to ask again")
    chat.session.seed += 1


def _undo(chat: Chat, argument: str) -> str:
    question = chat.session.undo()
    if question is None:
        raise DGemmaError("there is nothing to take back")
    return f"taken back: {text_of(question)}"


def _save(chat: Chat, argument: str) -> str:
    chat.session.save(_file("/save", argument))
    return f"saved in {argument}"


def _load(chat: Chat, argument: str) -> str:
    note = chat.session.load(_file("/load", argument))
    turns = sum(message["role"] == "user" for message in chat.session.messages)
    return f"{turns} turns" + (f"; {note}" if note else "")


def _trace(chat: Chat, argument: str) -> str:
    check_writable(_file("/trace", argument))
    chat.trace = argument
    return f"the next answer is recorded in {argument}"


def _stats(chat: Chat, argument: str) -> str:
    return chat.told


def _exit(chat: Chat, argument: str) -> None:
    chat.is_over = True


def _file(command: str, argument: str) -> str:
    if not argument:
        raise DGemmaError(f"{command} takes a file")
    return argument


COMMANDS: dict[str, tuple[tuple[str, str], Command]] = {
    "/help": (("", "this list"), _help),
    "/clear": (("", "forget the conversation"), _clear),
    "/system": (("[TEXT]", "the system turn; none without a text"), _system),
    "/think": (("[on|off]", "whether the model thinks first"), _think),
    "/tools": (("FILE|off", "function schemas that the model may call"), _tools),
    "/result": (("TEXT", "what a called tool found; the model goes on with it"), _result),
    "/image": (("[FILE|off]", "attach an image to the next question; list or drop those attached"), _image),
    "/set": (("FIELD VALUE", "a sampler setting, the seed, or image_tokens"), _set),
    "/retry": (("", "the last question again, with other noise"), _retry),
    "/undo": (("", "take the last turn back"), _undo),
    "/save": (("FILE", "the conversation as JSON"), _save),
    "/load": (("FILE", "go on with a conversation"), _load),
    "/stats": (("", "figures of the last answer"), _stats),
    "/trace": (("FILE", "record the next answer"), _trace),
    "/exit": (("", "leave; so does Ctrl-D"), _exit),
}
