"""A tokenizer like the published checkpoint's, in small: its control tokens at their ids, bytes for the rest."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from mlx_dgemma.checkpoint.tokenizer import FastTokenizer, TokenizerConfig

SHARED = Path(__file__).parent.parent / "data"
NAMES = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>",
    49: "<tool_call|>", 50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>",
    100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>", 107: "<|image|>",
}  # fmt: skip
PAIRS = ("th", "▁t", "in", "er", "▁a", "ca", "ll", "▁c")  # merges, so that what stands beside a letter matters
ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


def gemma_tokenizer(template: str | None = None) -> FastTokenizer:
    """With this chat template, the July one of the published checkpoint if none is given."""
    vocabulary = {NAMES.get(i, f"<unused{i}>"): i for i in range(110)}
    for piece in (*(f"<0x{i:02X}>" for i in range(256)), *map(chr, range(33, 127)), "▁", *PAIRS):
        vocabulary[piece] = len(vocabulary)
    merges = [(pair[0], pair[1]) for pair in PAIRS]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES.values()])
    return FastTokenizer(backend, TokenizerConfig(ROLES, (), template or july()))


def july() -> str:
    """The chat template that the published checkpoint has since July."""
    return (SHARED / "chat_template.jinja").read_text(encoding="utf-8")


def june() -> str:
    """Its earlier form, as far as prompts end differently: without thinking they end in an empty thought."""
    plain = "{{- '<|turn>model\\n' -}}\n    {%- elif"
    assert july().count(plain) == 1
    empty = (
        "{{- '<|turn>model\\n' -}}{%- if not enable_thinking -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}"
    )
    return july().replace(plain, empty + "\n    {%- elif")
