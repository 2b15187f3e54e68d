"""Prompts to token ids: text through the chat template, messages, ids as they are."""

from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.request import Message, Prompt


def prompt_ids(tokenizer: Tokenizer | None, prompt: Prompt, chat_template: bool = True) -> list[int]:
    """Token ids of a prompt in any of its three forms."""
    if not isinstance(prompt, str | list):
        raise DGemmaError(f"prompt is a {type(prompt).__name__}; give a text, a list of messages or of token ids")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DGemmaError("the prompt is empty; give a text, chat messages or token ids")
    if isinstance(prompt, list) and all(type(item) is int for item in prompt):
        return prompt
    if isinstance(prompt, list) and not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in prompt):
        raise DGemmaError('prompt must be a text, a list of {"role", "content"} messages, or a list of token ids')
    if tokenizer is None:
        raise DGemmaError("the checkpoint has no tokenizer files; give the prompt as token ids, or add tokenizer.json")
    if isinstance(prompt, str):
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise DGemmaError("the prompt is not valid UTF-8")
        if not chat_template or not tokenizer.chat_template:
            return tokenizer.encode(prompt)
        prompt = [{"role": "user", "content": prompt}]
    return _apply_chat_template(tokenizer, prompt)


def _apply_chat_template(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DGemmaError("the tokenizer has no chat template; give the prompt as text or token ids")
    try:
        # thinking is switched on by the system turn, as the checkpoint's template documents
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except (TemplateError, TypeError) as error:
        raise DGemmaError(f"the chat template refuses these messages: {first_line(error)}") from None
    return tokenizer.encode(text, add_special_tokens=False)


def check_ids(model: DiffusionGemma, ids: list[int]) -> None:
    """Every id is in the vocabulary, and prompt and one canvas fit the positions."""
    config = model.config
    outside = next((i for i in ids if not 0 <= i < config.vocab_size), None)
    if outside is not None:
        raise DGemmaError(f"token id {outside} is outside the vocabulary (0 … {config.vocab_size - 1})")
    if len(ids) + config.canvas_length > config.max_position_embeddings:
        raise DGemmaError(
            f"the prompt has {len(ids)} tokens; with one canvas of {config.canvas_length} that exceeds "
            f"max_position_embeddings ({config.max_position_embeddings}); shorten it"
        )
