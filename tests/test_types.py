"""The package is typed: a checker takes a right program of a user's, and refuses a wrong one for the right reasons."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
WRONG = {  # lines of a program, and what is wrong with each
    "engine.generate('roman 3')": "arg-type",
    "Request('roman 3', seed='7')": "arg-type",
    "Request('roman 3', config=None)": "call-arg",
    "Request('roman 3', samples=2).samples = 3": "misc",
    "GenerationConfig(max_new_token=64)": "call-arg",
    "GenerationConfig(entropy_bound='low')": "arg-type",
    "GenerationConfig(acceptance=lambda step: 0.5)": "arg-type",
    "GenerationConfig(acceptance=Rule())": "arg-type",
    "CanvasPlan([1, None], [1, None])": "list-item",
    "engine.score(Request('roman 3'), 3)": "arg-type",
    "engine.choose(Request('roman 3'), '{?}', ['III', 'IV']).text": "attr-defined",
    "engine.generate(Request('roman 3')).stats.token": "attr-defined",
    "engine.tokenizer.decode([1])": "union-attr",
    "for event in engine.stream(Request('roman 3')): event.text": "union-attr",
    "from mlx_dgemma import generate_txt": "attr-defined",
}
BEFORE = """\
from mlx_dgemma import CanvasPlan, Engine, GenerationConfig, Request
class Rule:
    def __call__(self, step: int) -> bool:
        return True
engine = Engine.load()
"""


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs mypy on a program of this checkout; its exit code and what it says."""
    cache = tmp_path_factory.mktemp("mypy")

    def run(program: Path) -> tuple[int, str]:
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), str(program)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_right_program_is_taken(check):
    code, told = check(ROOT / "tests" / "typed_use.py")
    assert code == 0, told


def test_a_wrong_program_is_refused_line_by_line(check, tmp_path):
    program = tmp_path / "wrong.py"
    program.write_text(BEFORE + "".join(line + "\n" for line in WRONG), encoding="utf-8")
    code, told = check(program)
    found = {int(number): kind for number, kind in re.findall(r"wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", told, re.M)}
    first = BEFORE.count("\n") + 1
    assert code == 1 and found == {first + i: kind for i, kind in enumerate(WRONG.values())}, told


def test_the_right_program_runs(tmp_path):
    """So what it says of types at rest is what there is."""
    program = ROOT / "tests" / "typed_use.py"
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("III ") and "TextCanvas" in done.stdout
