"""Texts that programs stumble over."""

import random

MARKERS = (
    "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<turn|>", "<|turn>", "<|turn>user\n", "<|turn>model\n",
    "<|turn>system\n", "<|think|>", "<|channel>", "<channel|>", "<|channel>thought\n", "<|tool_call>", "<|image|>",
    "<0x0A>", "<0xFF>", "▁", "{10}", "{}", "{?}", "\\{10}", "{0}", "{99999999999999999999}", "{{", "}}", "{% raw %}",
    "{{ messages }}", "%s%n", "$(id)", "`id`", "'; --", "\\", "\\u0000", "&amp;", "</script>", "[bold]x[/bold]",
)  # fmt: skip
PIECES = (
    "\x00", "\x1b[2J", "\x1b]0;x\x07", "\r", "\r\n", "\t", "\x0b\x0c\x1c\x85", "\u2028\u2029", "\x7f\x9b", "\ud800",
    "\udfff", "\ud83d\ude42", "\u202e", "\u2066\u2069", "\u200b\u200d\ufeff", "\ufe0f", "e\u0301\u0301\u0301",
    "\u0e33", "👩\u200d👩\u200d👧", "🇩🇪🇩", "ﷺ", "\U0010ffff", "\ue000", "ß", "İ", "ａ", "٣", "Ⅷ", "\xa0", "שלום",
    "日本",
)  # fmt: skip
TASKS = ("sort: d b a c", "reverse: abc", "sudoku 1..4..1.2....3.1", "count 18 to 50", "roman 14", "hello")


def word(random: random.Random) -> str:
    """A piece of a text."""
    way = random.randrange(8)
    if way < 2:
        return random.choice(MARKERS)
    if way < 4:
        return random.choice(PIECES)
    if way < 5:
        return chr(random.randrange(0x110000))
    if way < 6:
        return random.choice(TASKS)
    return "".join(chr(random.randrange(32, 127)) for _ in range(random.randrange(6)))


def text(random: random.Random, longest: int = 200_000) -> str:
    """Any text; mostly short, at times of up to `longest` characters."""
    parts = [word(random) for _ in range(random.choice([0, 1, 1, 2, 3, 5, 8, 20]))]
    made = random.choice(["", "", " "]).join(parts)
    if random.random() < 0.06:
        made = made * (random.choice([100, 10_000, longest]) // max(1, len(made)))
    if random.random() < 0.02:
        made += "".join(chr(random.randrange(0x110000)) for _ in range(longest // 20))
    return made
