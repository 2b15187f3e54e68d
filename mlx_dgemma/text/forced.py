"""A call that the model has to make: which tools may be called, and the tokens that open a call."""

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.control import SpellsOut
from mlx_dgemma.text.reply import MARKS
from mlx_dgemma.text.request import Request


def callable_names(request: Request) -> list[str]:
    """Names of the tools of which one has to be called; none if the model decides.

    Raises:
        DGemmaError: a choice that is no tool's name.
    """
    if request.tool_choice in ("auto", "none"):
        return []
    names = [str(tool.get("function", tool).get("name")) for tool in request.tools]
    if request.tool_choice == "required":
        return names
    if request.tool_choice not in names:
        raise DGemmaError(f"tool_choice is {request.tool_choice!r}, which is none of the tools {', '.join(names)}")
    return [request.tool_choice]


def opening_of(tokenizer: Tokenizer | None, name: str) -> list[int]:
    """Token ids of `<|tool_call>call:NAME{`.

    Raises:
        DGemmaError: a vocabulary that has no calls.
    """
    mark = None if tokenizer is None else tokenizer.get_vocab().get(MARKS["open_call"])
    if tokenizer is None or mark is None:
        raise DGemmaError("the checkpoint's vocabulary has no tool calls; leave tool_choice out")
    text = f"call:{name}{{"
    return [
        mark,
        *(tokenizer.encode_plain(text) if isinstance(tokenizer, SpellsOut) else tokenizer.encode(text, False)),
    ]
