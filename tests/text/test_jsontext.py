"""How far a text is an answer, and what may come next."""

import json
import math
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.text.formats import fits
from mlx_dgemma.text.grammar import Anything, Number, grammar, spelled
from mlx_dgemma.text.jsontext import read
from mlx_dgemma.text.numerals import is_viable
from mlx_dgemma.text.patterns import check_pattern

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(-1e9, 1e9).map(lambda x: round(x, 3))
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def reading(schema, text, **options):
    return read(grammar(schema, "schema"), text, **{"ended": False, "check": fits} | options)


@given(VALUES, st.sampled_from([None, 0, 3]))
@settings(max_examples=200, deadline=None)
def test_every_value_is_read_however_it_is_laid_out(value, indent):
    for ascii_only in (True, False):
        written = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        found = read(Anything(), written, ended=True, check=fits)
        assert found.is_done and found.is_whole
        assert json.loads(found.text) == value and found.text == spelled(json.loads(found.text))


@given(VALUES, st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_every_beginning_of_a_value_is_the_beginning_of_an_answer(value, at):
    written = spelled(value)
    begun = written[: at % (len(written) + 1)]
    found = read(Anything(), begun, ended=False, check=fits)
    is_escape = "\\" in begun[-12:]  # half an escape is cut off
    assert found.is_whole or is_escape
    assert found.is_done or found.options or found.is_free
    assert written.startswith(found.text.rstrip(" ")) or "e" in written  # exponents are read and not begun
    assert read(Anything(), found.text, ended=False, check=fits).text == found.text


@given(st.text(alphabet='{}[]",:0123456789-.etrufalsn \\u"', max_size=40))
@settings(max_examples=500, deadline=None)
def test_whatever_is_read_can_become_json(text):
    found = read(Anything(), text, ended=True, check=fits)
    if found.is_done:
        json.loads(found.text)
    else:
        assert found.options or found.is_free


OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "note": {"type": "string"}, "ok": {"type": "boolean"},
    },
    "required": ["name", "ok"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "taken", "options", "free"),
    [
        ("", "", ("{",), False),
        ("nonsense", "", ("{",), False),
        ("{", "{", ('"name": ',), False),
        ('{"na', "{", ('"name": ',), False),
        ('{"other": 1', "{", ('"name": ',), False),
        ('{"name"', '{"name": ', ('"',), False),
        ('{ "name" : 7', '{"name": ', ('"',), False),
        ('{"name": "Os', '{"name": "Os', (), True),
        ('{"name":"Oslo"', '{"name": "Oslo"', (', "age": ', ', "note": ', ', "ok": '), False),
        ('{"name": "Oslo"}', '{"name": "Oslo"', (', "age": ', ', "note": ', ', "ok": '), False),
        ('{"name": "Oslo", "no', '{"name": "Oslo"', (', "note": ',), False),
        ('{"name": "Oslo", "note": "x", "age": 1', '{"name": "Oslo", "note": "x"', (', "ok": ',), False),
        ('{"name": "Oslo", "age": 1', '{"name": "Oslo", "age": 1', (), True),
        ('{"name": "Oslo", "age": 1\n', '{"name": "Oslo", "age": 1 ', (', "note": ', ', "ok": '), False),
        ('{"name": "Oslo", "age": x', '{"name": "Oslo", "age": ', (), True),
        ('{"name": "Oslo", "age": 1.5,', '{"name": "Oslo", "age": ', (), True),
        ('{"name": "Oslo", "ok": t', '{"name": "Oslo", "ok": ', ("true",), False),
        ('{"name": "Oslo", "ok": yes', '{"name": "Oslo", "ok": ', ("true", "false"), False),
        ('{"name": "Oslo", "ok": true', '{"name": "Oslo", "ok": true', ("}",), False),
        ('{"name": "a\nb\\x', '{"name": "a\\nb', (), True),
    ],
)
def test_what_stands_and_what_comes_next(text, taken, options, free):
    found = reading(OBJECT, text)
    assert (found.text, found.options, found.is_free) == (taken, options, free)


def test_what_a_model_says_behind_the_answer_is_left_out():
    found = reading(OBJECT, '{"name": "Oslo", "ok": true} That is all.')
    assert found.is_done and not found.is_whole and found.text == '{"name": "Oslo", "ok": true}'


def test_an_end_of_the_model_ends_a_string_and_a_number():
    assert reading({"type": "string"}, '"Oslo', ended=True).text == '"Oslo"'
    assert reading({"type": "integer"}, "12", ended=True).is_done
    assert not reading({"type": "integer"}, "12").is_done
    assert not reading({"type": "string", "minLength": 5}, '"Oslo', ended=True).is_done


def test_lengths_of_strings_and_arrays():
    assert reading({"type": "string", "minLength": 3}, '"ab"').text == '"ab'
    assert reading({"type": "string", "maxLength": 2}, '"abc"').text == '"'
    assert reading({"type": "string", "maxLength": 2}, '"ab"').is_done
    few = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}
    assert reading(few, "[]").options == ("true", "false")
    assert reading(few, "[true").options == ("]", ", ")
    assert reading(few, "[true, false").options == ("]",)
    assert reading({"type": "array", "items": {"type": "boolean"}}, "[").options == ("]", "true", "false")
    pair = {"prefixItems": [{"const": 1}, {"type": "string"}], "items": False, "minItems": 2}
    assert reading(pair, '[1, "a"').options == ("]",)


def test_a_set_holds_nothing_twice():
    some = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}
    assert reading(some, '["a", ').options == ('"b"',)
    assert reading(some, '["a", "b"').options == ("]",)
    numbers = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    assert reading(numbers, "[1, 2, 1]").text == "[1, 2 "


def test_alternatives_go_as_far_as_they_can():
    either = {"anyOf": [{"type": "null"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    assert reading(either, "").options == ("null", '"', "[")
    assert reading(either, '["a", "b"]').is_done
    shapes = {
        "anyOf": [
            {"properties": {"kind": {"const": "a"}, "x": {"type": "string"}}, "required": ["kind", "x"]},
            {"properties": {"kind": {"const": "b"}, "y": {"type": "string"}}, "required": ["kind", "y"]},
        ]
    }
    assert reading(shapes, '{"kind": ').options == ('"a"', '"b"')
    assert reading(shapes, '{"kind": "b"').options == (', "y": ',)


def test_keys_of_an_open_object():
    counts = {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2}
    assert reading(counts, "{").options == ('"', "}")
    assert reading(counts, '{"a": 1, "a": 2').text == '{"a": 1 '
    assert reading(counts, '{"a": 1, "b": 2}').is_done
    assert reading(counts, '{"a": 1, "b": 2, "c": 3').options == ("}",)
    assert reading(counts, '{"a').in_string


@given(st.integers(-3000, 3000), st.integers(0, 400), st.integers(1, 30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_digits_are_viable_if_and_only_if_an_integer_in_bounds_begins_with_them(low, width, multiple, is_bounded):
    node = Number(True, low, low + width if is_bounded else math.inf, multiple=multiple)
    allowed = [n for n in range(low, low + width + 1) if n % multiple == 0]
    for text in {spelled(n)[:k] for n in allowed for k in range(1, 6)}:
        assert is_viable(text, node), text
    if is_bounded:
        for text in random.Random(low).sample([*map(str, range(0, 4000, 7)), *map(str, range(-4000, 0, 7))], 60):
            assert is_viable(text, node) == any(spelled(n).startswith(text) for n in allowed), text


def test_fractions_are_viable_up_to_their_bounds():
    node = Number(False, 0.25, 1.5)
    assert all(is_viable(text, node) for text in ("0", "0.2", "0.25", "1", "1.", "1.4"))
    assert not any(is_viable(text, node) for text in ("2", "0.1", "1.6", "-", "00", "1e", ".5", "x"))
    below = Number(False, -1, 1, frozenset((-1.0, 1.0)))
    assert all(is_viable(text, below) for text in ("0.9", "-0.99", "0")) and not is_viable("1", below)
    assert not is_viable("-1.0", below) and not fits(below, 1) and fits(below, 0.5)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)*b", "(?:x*)*", "([a-z]+)*x", "a*a*a*a*a*b", "(.*,)+x", "(a+){2,}", "a{1,99999}" * 5]
)
def test_patterns_that_could_take_forever_are_refused(pattern):
    with pytest.raises(DGemmaError, match="could take forever"):
        check_pattern(pattern, "schema")


@pytest.mark.parametrize(
    "pattern", ["^[a-z]+-[0-9]+$", r"^\d{4}-\d\d-\d\d$", "(ab)?c*", "^(north|south)$", "[(+*]+", r"\(a+\)+", "(ab)+"]
)
def test_ordinary_patterns_are_taken(pattern):
    check_pattern(pattern, "schema")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "cannot be read"),
        (7, "is a text"),
        ("a" * 2000, "is a text"),
        (r"(a)\1", "looks back"),
        ("(?=a)", "ahead"),
    ],
)
def test_other_patterns_are_refused_by_name(pattern, told):
    with pytest.raises(DGemmaError, match=told):
        check_pattern(pattern, "schema")


def test_letters_are_not_lost():
    letters = string.printable.replace("\x0b", "").replace("\x0c", "")
    assert json.loads(read(Anything(), json.dumps(letters), ended=False, check=fits).text) == letters
