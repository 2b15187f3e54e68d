"""dgemma-bench on the embedded checkpoint: its fields, its sums, its errors."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mlx_dgemma.bench import main, table
from mlx_dgemma.loading import EMBEDDED
from mlx_dgemma.measure import Options, Report, run_benchmark

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report() -> Report:
    return run_benchmark(Options(prompt_length=40, steps=4, repeat=2))


def test_json_has_every_field(capsys):
    assert main(["--json", "--steps", "3", "--repeat", "1", "--prompt-length", "20", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1 and list(result) == [f.name for f in fields(Report)]
    assert (result["model"], result["prompt_length"], result["steps"]) == ("embedded", 20, 3)


def test_stages_add_up_to_about_a_step(report):
    assert report.layers_ms > 0 and report.vocabulary_ms > 0
    assert report.layers_ms + report.vocabulary_ms + report.rest_ms == pytest.approx(report.step_ms)
    # medians of separate runs on a shared machine; twice the step would mean that something is measured twice
    assert 0.4 * report.step_ms < report.layers_ms + report.vocabulary_ms < 2.5 * report.step_ms


def test_rates_follow_from_times(report):
    assert report.tokens_per_second == pytest.approx(1000 * report.canvas_length / (report.steps * report.step_ms))
    assert report.prefill_tokens_per_second == pytest.approx(report.prompt_length / report.prefill_seconds)
    assert report.percent_of_floor == pytest.approx(100 * report.floor_ms / report.step_ms)
    assert 0 < report.percent_of_floor <= 100


def test_memory_is_weights_prefix_and_some(report):
    on_disk = sum(file.stat().st_size for file in EMBEDDED.glob("*.safetensors"))
    assert 0.9 * on_disk < report.weight_bytes < 2.2 * on_disk  # bfloat16 on disk, float32 on a CPU
    assert report.cache_bytes > 0
    assert report.weight_bytes + report.cache_bytes + report.transient_bytes <= report.peak_bytes
    assert report.transient_bytes < 50e6


def test_a_longer_prompt_has_a_larger_prefix(report):
    longer = run_benchmark(Options(prompt_length=400, steps=3, repeat=1))
    assert longer.prompt_length == 400 and longer.cache_bytes > report.cache_bytes


def test_the_table_names_every_stage(report):
    text = table(report)
    for word in (
        "prefill",
        "layers",
        "vocabulary",
        "sampler",
        "tokens/s",
        "GB at most",
        "GFLOP/s",
        "real text",
        "floor",
    ):
        assert word in text
    assert f"{report.step_ms:.2f} ms" in text and "{" not in text


@pytest.mark.parametrize(
    "options",
    [["--steps", "2"], ["--repeat", "0"], ["--prompt-length", "0"], ["--seed", "-1"], ["--steps", "x"], ["--unknown"]],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, options):
    with pytest.raises(SystemExit) as stop:
        main(options)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("options", [["--model", "/nowhere/at/all"], ["--prompt-length", "4090"]])
def test_failures_are_one_line_and_exit_code_1(capsys, options):
    assert main(options) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_nothing_heavy_is_imported_for_help():
    code = "import sys; from mlx_dgemma.bench import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'mlx', 'mlx_lm', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
