"""Prompts to token ids: text through the chat template, messages, ids as they are. What would be lost is refused."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TypeGuard

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.request import Message, Prompt

MANY = 1000  # unknown characters that are looked for: a text may have a million, and each takes a moment


def prompt_ids(tokenizer: Tokenizer | None, prompt: Prompt, chat_template: bool = True) -> list[int]:
    """Token ids of a prompt in any of its three forms.

    Raises:
        DGemmaError: an empty or malformed prompt, text without a tokenizer or without a chat template, characters that
            the tokenizer does not know, messages that hold more than text.
    """
    if not isinstance(prompt, str | list):
        raise DGemmaError(f"prompt is a {type(prompt).__name__}; give a text, a list of messages or of token ids")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DGemmaError("the prompt is empty; give a text, chat messages or token ids")
    if _is_ids(prompt):
        return prompt
    if tokenizer is None:
        _messages(prompt)
        raise DGemmaError("the checkpoint has no tokenizer files; give the prompt as token ids, or add tokenizer.json")
    if isinstance(prompt, str):
        if not chat_template:
            return encode(tokenizer, prompt, "the prompt", add_special_tokens=True)
        prompt = [{"role": "user", "content": prompt}]
    return _apply_chat_template(tokenizer, _messages(prompt))


def _is_ids(prompt: Prompt) -> TypeGuard[list[int]]:
    return isinstance(prompt, list) and all(type(item) is int for item in prompt)


def encode(tokenizer: Tokenizer, text: str, what: str, *, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text that must not lose a character.

    Args:
        tokenizer: from `load`.
        text: any.
        what: its name in errors.
        add_special_tokens: whether the tokenizer may add what its file says.

    Raises:
        DGemmaError: half of a surrogate pair, or characters that the tokenizer does not know.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DGemmaError(f"{what} is not valid UTF-8")
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


def _messages(prompt: Prompt) -> list[Message]:
    """The messages of a prompt; raises DGemmaError for what is none, and for what one holds beside text."""
    messages: list[Message] = []
    for number, message in enumerate(prompt if isinstance(prompt, list) else [], 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DGemmaError('prompt must be a text, a list of {"role", "content"} messages, or a list of token ids')
        where, content = f"message {number} ({message['role']})", message.get("content")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise DGemmaError(f"{where}: tool_calls is a {type(calls).__name__}; give a list of calls")
        if any(isinstance(_arguments(call), str) for call in calls):
            raise DGemmaError(f"{where}: a tool call's arguments are a text; give them as an object")
        if content is None:
            raise DGemmaError(f"{where} has no content; give a text, an empty one if there is none")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise DGemmaError(f"{where}: content of type {kind!r} is not supported, only text is")
        messages.append(message)
    return messages


def _arguments(call: object) -> object:
    """Of a tool call, as clients send it."""
    function = call.get("function", call) if isinstance(call, dict) else None
    return function.get("arguments") if isinstance(function, dict) else None


def _apply_chat_template(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    if not tokenizer.chat_template:
        raise DGemmaError(
            "the checkpoint has no chat template, so the model could not tell a question from a text to go on with; "
            "add chat_template.jinja to its folder, or give a raw prompt (chat_template=False, --no-chat-template)"
        )
    try:
        # thinking is switched on by the system turn, as the checkpoint's template documents
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except DGemmaError:
        raise
    except Exception as error:  # somebody else's tokenizer and template may raise anything
        raise DGemmaError(f"the chat template refuses these messages: {first_line(error)}") from None
    return encode(tokenizer, text, "the prompt")


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
        raise DGemmaError(
            f"the prompt has {len(ids)} tokens; with one canvas of {config.canvas_length} that exceeds "
            f"max_position_embeddings ({config.max_position_embeddings}); shorten it"
        )
