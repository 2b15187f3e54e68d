"""Peers that only some people need: what says in one line how to get them, and the start-up that does without."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# a program that sees no such package, whatever is installed
WITHOUT = """
import runpy, sys
from importlib import abc, machinery
class Hide(abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.partition(".")[0] in {hidden!r} else find(name, *more)
sys.argv = {argv!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def without(hidden: list[str], module: str, *arguments: str) -> subprocess.CompletedProcess:
    code = WITHOUT.format(hidden=hidden, argv=[module, *arguments], module=module)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize(
    ("hidden", "module", "arguments", "told"),
    [
        (["mlx_vlm"], "benchmarks.step", [], "mlx-vlm is not installed; pip install mlx-vlm"),
        (["mlx_lm"], "benchmarks.startup", [], "mlx-lm is not installed; pip install mlx-lm"),
        (["torch"], "mlx_dgemma.demo.train", ["--output", "x"], "torch is not installed; pip install torch"),
        (
            ["torch", "transformers"],
            "mlx_dgemma.demo.train",
            ["--output", "x"],
            "torch and transformers are not installed; pip install torch transformers",
        ),
        (["transformers"], "mlx_dgemma.demo.evaluate", ["--reference"], "transformers is not installed; pip install"),
        (["matplotlib"], "mlx_dgemma.sweep", ["--plot", "x.png"], "--plot needs matplotlib; pip install matplotlib"),
    ],
)
def test_a_missing_peer_is_one_line(hidden, module, arguments, told):
    done = without(hidden, module, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1


def test_an_answer_needs_none_of_them():
    hidden = ["mlx_lm", "transformers", "torch", "matplotlib", "sentencepiece", "tqdm", "huggingface_hub"]
    done = without(hidden, "mlx_dgemma.generate", "--prompt", "roman 1994", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "MCMXCIV\n", "")


@pytest.mark.slow
def test_the_first_answer_is_there_before_mlx_lm_is_imported():
    command = [sys.executable, "-m", "benchmarks.startup", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"first answer \| [\d.]+ \| ([\d.]+) \|", done.stdout)[1]) <= 0.6
