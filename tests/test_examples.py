"""Every example runs, is as short as it is meant to be, and prints what it is there to show."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LONG = {"conformance.py"}  # a tool; tests/server/test_conformance.py runs it
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name not in LONG)
SPELLED = "one thousand eight hundred forty-two"


def run(name: str, *arguments: str, stdin: str = "") -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_is_short_and_says_what_it_shows(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") < 30 and source.startswith('"""')


def test_every_example_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f'run("{path.name}"' not in source] == []


def test_a_rule_of_ones_own_beside_the_published_one():
    published, own = run("own_sampler.py", "6").splitlines()
    assert re.fullmatch(r"published: [\d.]+% solved, [\d.]+ steps per canvas", published)
    assert re.fullmatch(r"LikelierThan\(p=0\.9\): [\d.]+% solved, [\d.]+ steps per canvas", own)
    assert float(own.split(": ")[1].split("%")[0]) >= 50  # it solves Sudokus, which a broken rule does not


def test_a_batch_of_prompts():
    lines = run("batch.py", stdin="roman 1994\n\nupper canvas\n").splitlines()
    assert len(lines) == 2 and '"answer": "MCMXCIV"' in lines[0] and '"answer": "CANVAS"' in lines[1]


def test_probabilities_of_tokens():
    rows = [line.split() for line in run("token_probabilities.py", "upper canvas").splitlines()]
    assert "".join(row[0].strip("'") for row in rows) == "CANVAS"
    assert all(0 < float(row[1].rstrip("%")) <= 100 and float(row[2]) >= 0 for row in rows)


def test_infill():
    assert run("infill.py").splitlines() == [SPELLED] * 3


def test_a_structured_read():
    hundreds, ones = run("structured_read.py").splitlines()
    assert hundreds.startswith("hundreds: eight (") and ones.startswith("ones: two (")


def test_a_form_is_kept_to():
    first, steps = run("structured.py").splitlines()
    kind, _, digits = first.partition(" ")
    assert kind in ("number", "word", "other") and all(0 <= digit <= 9 for digit in json.loads(digits))
    assert re.fullmatch(r"\d+ denoising steps", steps)


@pytest.fixture(scope="module")
def url():
    """Where a server of the embedded checkpoint is."""
    command = [sys.executable, "-m", "mlx_dgemma.server", "--port", "0", "--quiet"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield re.search(r"http://\S+", server.stderr.readline())[0]
    finally:
        server.terminate()
        server.wait(30)
        server.stderr.close()


def test_a_server_is_asked(url):
    *drafts, text = run("ask_server.py", url, "spell 1842").splitlines()
    assert text == SPELLED and drafts[-1].endswith(SPELLED) and drafts[0].startswith("step 1: ")


def test_a_server_is_asked_for_what_stands_before_an_end(url):
    assert run("ask_completions.py", url, "roman 1994", "XCIV", "3") == "MCM | XCIV\n"


def test_a_server_is_asked_with_openais_client(url):
    assert run("ask_responses.py", url, "spell 1842").splitlines() == [SPELLED, "15 tokens read, 36 written"]


def test_a_server_is_asked_with_anthropics_client(url):
    lines = run("ask_messages.py", url, "spell 1842", "eight").splitlines()
    assert lines == ["15 tokens", "one thousand ", "stop_sequence eight"]


def test_a_server_is_asked_questions(url):
    *kinds, urgent = run("ask_systemone.py", url, "roman 1994", "a number", "a word").splitlines()
    assert [line.partition(": ")[0] for line in kinds] == ["a number", "a word"]
    shares = [float(line.partition(": ")[2].rstrip("%")) for line in kinds]
    assert sum(shares) == pytest.approx(100, abs=0.2) and re.fullmatch(r"urgent: [\d.]+%", urgent)
