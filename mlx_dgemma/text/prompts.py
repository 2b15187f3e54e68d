"""Prompts to token ids: text through the chat template, messages, ids as they are. What would be lost is refused."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeGuard

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.errors import ContextOverflow, DGemmaError, first_line
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.control import THOUGHT, SetAside, SpellsOut, names_in
from mlx_dgemma.text.messages import Message, normalised
from mlx_dgemma.text.pictures import for_template
from mlx_dgemma.text.request import Prompt
from mlx_dgemma.text.tools import normalised_tools

MANY = 1000  # unknown characters that are looked for: a text may have a million, and each takes a moment


def prompt_ids(
    tokenizer: Tokenizer | None, prompt: Prompt, chat_template: bool = True, *,
    thinking: bool = False, tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:  # fmt: skip
    """Token ids of a prompt in any of its three forms; one stands for an image.

    Control tokens that messages spell out become text; in a raw prompt (`chat_template` False) they are control tokens.

    Args:
        tokenizer: from `load`.
        prompt: text, messages as clients send them (`messages.normalised`), or ids.
        chat_template: whether a text becomes a user turn.
        thinking: whether the template asks for a thought.
        tools: function schemas, see `tools.normalised_tools`.

    Raises:
        DGemmaError: an empty or malformed prompt, text without a tokenizer or without a chat template, characters that
            the tokenizer does not know, malformed messages, a template without thoughts or tools.
    """
    declared = normalised_tools(tools)
    raw = isinstance(prompt, str) and not chat_template
    if (thinking or declared) and (raw or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int))):
        raise DGemmaError("thinking and tools are the chat template's; give the prompt as messages, or leave them out")
    if not isinstance(prompt, str | list):
        raise DGemmaError(f"prompt is a {type(prompt).__name__}; give a text, a list of messages or of token ids")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DGemmaError("the prompt is empty; give a text, chat messages or token ids")
    if _is_ids(prompt):
        return prompt
    if tokenizer is None:
        normalised(prompt if isinstance(prompt, list) else [])
        raise DGemmaError("the checkpoint has no tokenizer files; give the prompt as token ids, or add tokenizer.json")
    if isinstance(prompt, str):
        if not chat_template:
            return encode(tokenizer, prompt, "the prompt", add_special_tokens=True)
        prompt = [{"role": "user", "content": prompt}]
    return _in_template(tokenizer, normalised(prompt), declared, thinking)


def _is_ids(prompt: Prompt) -> TypeGuard[list[int]]:
    return isinstance(prompt, list) and all(type(item) is int for item in prompt)


def encode(
    tokenizer: Tokenizer, text: str, what: str, *, add_special_tokens: bool = False, plain: bool = False
) -> list[int]:
    """Token ids of a text that must not lose a character.

    Args:
        tokenizer: from `load`.
        text: any.
        what: its name in errors.
        add_special_tokens: whether the tokenizer may add what its file says.
        plain: whether control tokens that are spelled out are text.

    Raises:
        DGemmaError: half of a surrogate pair, or characters that the tokenizer does not know.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DGemmaError(f"{what} is not valid UTF-8")
    if plain and isinstance(tokenizer, SpellsOut):
        ids = tokenizer.encode_plain(text)
    else:
        ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in ids:
        return ids
    strange = (c for c in dict.fromkeys(text) if unknown in tokenizer.encode(c, add_special_tokens=False))
    lost = list(islice(strange, MANY))
    if not lost:  # the unknown token's own name, spelled out
        return ids
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in lost[:5])
    shown += f" and {len(lost) - 5}{' or' * (len(lost) == MANY)} more" if len(lost) > 5 else ""
    raise DGemmaError(f"{what} has characters that the checkpoint's tokenizer does not know: {shown}; leave them out")


def _in_template(tokenizer: Tokenizer, messages: list[Message], tools: list[Message], thinking: bool) -> list[int]:
    """Token ids of messages in the checkpoint's chat template."""
    if not tokenizer.chat_template:
        raise DGemmaError(
            "the checkpoint has no chat template, so the model could not tell a question from a text to go on with; "
            "add chat_template.jinja to its folder, or give a raw prompt (chat_template=False, --no-chat-template)"
        )
    messages = for_template(messages)
    aside = _aside(tokenizer, messages, tools)
    if aside is not None:
        messages, tools = [_marked(aside, message) for message in messages], aside.marked(tools)
    text = _rendered(tokenizer, messages, tools, thinking)
    _check_place(tokenizer, messages, tools, thinking, text)
    if aside is not None:
        return aside.encode(text, lambda part, plain: encode(tokenizer, part, "the prompt", plain=plain))
    return encode(tokenizer, text, "the prompt")


def _aside(tokenizer: Tokenizer, messages: list[Message], tools: list[Message]) -> SetAside | None:
    """The names of control tokens in messages and tools; None if there are none, or the tokenizer cannot write them."""
    if not isinstance(tokenizer, SpellsOut) or not names_in(tokenizer, [messages, tools]):
        return None
    return SetAside(tokenizer, messages, tools)


def _marked(aside: SetAside, message: Message) -> Message:
    """A message without control tokens; thoughts in what the model said are left to the template, which drops them."""
    kept = {"content": aside.marked(message["content"], but=THOUGHT)} if message["role"] == "assistant" else {}
    return {**aside.marked(message), **kept}


def _rendered(tokenizer: Tokenizer, messages: list[Message], tools: list[Message], thinking: bool) -> str:
    declared = {"tools": tools} if tools else {}
    try:
        rendered: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking, **declared
        )
        return rendered
    except DGemmaError:
        raise
    except Exception as error:  # somebody else's tokenizer and template may raise anything
        raise DGemmaError(f"the chat template refuses these messages: {first_line(error)}") from None


def _check_place(
    tokenizer: Tokenizer, messages: list[Message], tools: list[Message], thinking: bool, text: str
) -> None:
    """Raises DGemmaError for what the template leaves out without a word."""
    if thinking and text == _rendered(tokenizer, messages, tools, False):
        raise DGemmaError("the checkpoint's chat template has no thinking; leave it off")
    if tools and text == _rendered(tokenizer, messages, [], thinking):
        raise DGemmaError("the checkpoint's chat template has no place for tools; leave them out")
    called = [call["function"]["name"] for message in messages for call in message.get("tool_calls", [])]
    lost = next((name for name in called if name not in text), None)
    if lost is not None:
        raise DGemmaError(f"the checkpoint's chat template has no place for tool calls ({lost!r}); leave them out")


def check_vocabulary(model: DiffusionGemma, ids: Iterable[int]) -> None:
    """Every id is in the model's vocabulary, which a tokenizer's need not be."""
    size = model.config.vocab_size
    outside = next((i for i in ids if not 0 <= i < size), None)
    if outside is not None:
        raise DGemmaError(f"token id {outside} is outside the vocabulary (0 … {size - 1})")


def check_ids(model: DiffusionGemma, ids: Sequence[int]) -> None:
    """Every id is in the vocabulary, and prompt and one canvas fit the positions."""
    check_vocabulary(model, ids)
    config = model.config
    if len(ids) + config.canvas_length > config.max_position_embeddings:
        raise ContextOverflow(
            f"the prompt has {len(ids)} tokens; with one canvas of {config.canvas_length} that exceeds "
            f"max_position_embeddings ({config.max_position_embeddings}); shorten it"
        )
