"""Text that a terminal shows and does not obey: control characters are shown, not sent."""

import unicodedata

NOT_DRAWABLE = "\ufffd"


def drawable(text: str) -> str:
    """Somebody's text, of which a terminal obeys nothing but newlines; never empty.

    Control characters become their pictures; what has no certain width (joiners, direction marks, private use) or no
    meaning (surrogates, unassigned) becomes U+FFFD; variation selectors are dropped, as terminals disagree on them.
    """
    return "".join(map(_drawable, text)) or NOT_DRAWABLE


def _drawable(character: str) -> str:
    if character == "\n":
        return character
    if "\ufe00" <= character <= "\ufe0f":
        return ""
    if character < " " or character == "\x7f":
        return chr(0x2400 + ord(character)) if character < " " else "\u2421"
    kind = unicodedata.category(character)
    return NOT_DRAWABLE if kind.startswith("C") or kind in ("Zl", "Zp") else character


def line(text: object) -> str:
    """One line for a message; what it quotes, file names among it, may hold anything."""
    return drawable(str(text)).replace("\n", "\u240a")


def harmless(text: str) -> str:
    """A text as it is, but for what would drive a terminal or turn its rows around; newlines, tabs and joiners stay."""
    return "".join(_drawable(c) if _drives(c) else c for c in text)


def _drives(character: str) -> bool:
    if character in "\n\t":
        return False
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or "\u202a" <= character <= "\u202e"
        or ("\u2066" <= character <= "\u2069")
    )
