"""Tasks of letters, numbers and words: their right answers, and how arguments are drawn (lengths first)."""

import json
import random
import string

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_ROMAN = tuple(zip(
    (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
    "M CM D CD C XC L XL X IX V IV I".split(),
    strict=True,
))  # fmt: skip


def spell(n: int) -> str:
    """English words of 0 ≤ n < 10,000: 342 -> "three hundred forty-two"."""
    if n >= 1000:
        return _join(spell(n // 1000) + " thousand", n % 1000)
    if n >= 100:
        return _join(_ONES[n // 100] + " hundred", n % 100)
    if n >= 20:
        return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    return _ONES[n]


def _join(head: str, rest: int) -> str:
    return f"{head} {spell(rest)}" if rest else head


def roman(n: int) -> str:
    """Roman numeral of 1 ≤ n < 4,000."""
    text = ""
    for value, letters in _ROMAN:
        text += letters * (n // value)
        n %= value
    return text


def count(span: str) -> str:
    """The integers of "3 to 5", both ends included, separated by spaces."""
    start, stop = map(int, span.split(" to "))
    return " ".join(map(str, range(start, stop + 1)))


def running_sums(digits: str) -> str:
    """Every digit's sum with all before it, modulo 10, worked out: "3142" -> "3+1=4+4=8+2=0"."""
    total, sums = int(digits[0]), digits[0]
    for digit in digits[1:]:
        total = (total + int(digit)) % 10
        sums += f"+{digit}={total}"
    return sums


def add(numbers: str) -> str:
    """The sum of numbers separated by spaces."""
    return str(sum(map(int, numbers.split())))


def add_step_by_step(numbers: str) -> str:
    """How a sum is worked out: "12 7 30" -> "12+7=19\\n19+30=49"."""
    total, *rest = map(int, numbers.split())
    lines = []
    for number in rest:
        lines.append(f"{total}+{number}={total + number}")
        total += number
    return "\n".join(lines)


def in_order(letters: str) -> str:
    """The same letters in order."""
    return "".join(sorted(letters))


def json_object(pairs: str) -> str:
    """A JSON object of "key value key value"; digits alone are a number."""
    words = pairs.split()
    values = [int(word) if word.isdigit() else word for word in words[1::2]]
    return json.dumps(dict(zip(words[::2], values, strict=True)))


def is_order_of(words: str, answer: str) -> bool:
    """Whether an answer holds the same words, in any order."""
    return sorted(words.split(" ")) == sorted(answer.split(" "))


def shuffled(words: str, rng: random.Random) -> str:
    """The words in a random order."""
    order = words.split(" ")
    rng.shuffle(order)
    return " ".join(order)


def draw_letters(rng: random.Random, low: int, high: int) -> str:
    """So many lower-case letters, both ends included."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(low, high)))


def draw_digits(rng: random.Random, low: int, high: int) -> str:
    """A number of so many digits; it begins with 0 only if that is all of it."""
    n = rng.randint(low, high)
    return str(rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n))


def draw_words(rng: random.Random) -> str:
    return " ".join(draw_letters(rng, 1, 9) for _ in range(rng.randint(1, 4)))


def draw_roman(rng: random.Random) -> str:
    digits = rng.randint(1, 4)
    return str(rng.randrange(10 ** (digits - 1), min(10**digits, 4000)))


def draw_span(rng: random.Random) -> str:
    """Two numbers from 1 to 99; half of them far enough apart for several canvases of 64."""
    length = rng.randint(22, 98) if rng.random() < 0.6 else rng.randint(0, 22)
    start = rng.randint(1, 99 - length)
    return f"{start} to {start + length}"


def draw_line(rng: random.Random) -> str:
    """2 to 12 words that fill most of a canvas, or few of them; no two are the same."""
    n = rng.randint(2, 12)
    words = dict.fromkeys(draw_letters(rng, 1, rng.choice((2, 4, 8))) for _ in range(n))  # a set has no order
    line = " ".join(sorted(words, key=lambda _: rng.random()))
    return line if len(words) > 1 and len(line) <= 60 else draw_line(rng)


def draw_sequence(rng: random.Random) -> str:
    """Digits for running sums: six of ten times 13 to 16 of them, whose sums fill a canvas."""
    n = rng.randint(13, 16) if rng.random() < 0.6 else rng.randint(1, 12)
    return "".join(rng.choices(string.digits, k=n))


def draw_summands(rng: random.Random) -> str:
    return " ".join(draw_digits(rng, 1, 2) for _ in range(rng.randint(2, 4)))


def draw_pairs(rng: random.Random) -> str:
    """Keys and values of a small object; no two keys are the same."""
    keys = {draw_letters(rng, 1, 7) for _ in range(rng.randint(1, 4))}
    pairs = [f"{key} {_draw_value(rng)}" for key in sorted(keys)]
    rng.shuffle(pairs)
    text = " ".join(pairs)
    return text if len(json_object(text)) <= 62 else draw_pairs(rng)


def _draw_value(rng: random.Random) -> str:
    return draw_digits(rng, 1, 4) if rng.random() < 0.5 else draw_letters(rng, 1, 8)
