"""Tokenizer files of the embedded checkpoint: one token a character, and Gemma's markers as single tokens."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

# Gemma's names, each one token that a text never holds.
SPECIAL = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|tool>",
    "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|image>", "<|image|>",
    "<image|>",
)  # fmt: skip
PAD, EOS, BOS, END_OF_TURN = 0, 1, 2, SPECIAL.index("<turn|>")
BEGIN_IMAGE, IMAGE, END_IMAGE = (SPECIAL.index(name) for name in ("<|image>", "<|image|>", "<image|>"))
RESPONSE = SPECIAL.index("<|tool_response>")  # ends a turn that waits for a tool's result
HEADS = ("user\n", "model\n", "system\n", "thought\n")  # what follows a marker is one token, with its line break
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # all that ASCII prints
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def build_tokenizer() -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *HEADS, *CHARACTERS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(head, normalized=False) for head in HEADS])
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as a Gemma repo has them."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
