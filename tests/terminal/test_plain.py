"""What somebody else's text may do on a terminal: be seen."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mlx_dgemma.terminal.plain import drawable, harmless, line

ANY = st.text(st.characters(), max_size=30)
EVIL = "\x1b[2J\x1b]0;x\x07\x00\x7f\x9b\u202evil\u2066\r\b"


def test_escapes_become_pictures():
    assert drawable("\x1b[2J\x07a\n") == "␛[2J␇a\n" and line("a\nb\x1b") == "a␊b␛"
    assert harmless(EVIL + "👩\u200d💻é\t\n") == "␛[2J␛]0;x␇␀␡\ufffd\ufffdvil\ufffd␍␈👩\u200d💻é\t\n"


@given(ANY)
def test_nothing_that_drives_a_terminal_is_left(text):
    for shown in (drawable(text), harmless(text), line(text)):
        assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown if c not in "\n\t")
        assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") & set(shown)
    assert "\n" not in line(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=30))
def test_plain_text_stays(text):
    assert harmless(text) == text
