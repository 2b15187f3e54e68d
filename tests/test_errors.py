"""The error that users see is one line of readable length, whatever it quotes."""

import pickle

import pytest

from mlx_dgemma import DGemmaError
from mlx_dgemma.errors import LONGEST


@pytest.mark.parametrize("quoted", ["a\nb", "\x1b[2J", "\u2028", "\x85\x0b\x0c\x1c", "\ud800", "\x00", "\r"])
def test_what_it_quotes_breaks_no_line(quoted):
    told = str(DGemmaError(f"{quoted} is no name"))
    assert len(told.splitlines()) == 1 and told.isprintable() and told.encode()
    assert ascii(quoted)[1:-1] in told


def test_what_it_quotes_may_be_a_whole_file():
    told = str(DGemmaError(f"x.json: {'long ' * 40_000} is no number; download it again"))
    assert len(told) <= LONGEST + 3
    assert told.startswith("x.json: long") and told.endswith("is no number; download it again")


def test_other_messages_stay_as_they_are():
    told = "“é” — 日本語 🙂 is longer than 3 characters; shorten it"
    assert str(DGemmaError(told)) == told
    assert str(pickle.loads(pickle.dumps(DGemmaError(told)))) == told
