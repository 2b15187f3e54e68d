"""dgemma-bench on the embedded checkpoint: its fields, its sums, its errors."""

import json
import re
import subprocess
import sys
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dgemma import Engine
from mlx_dgemma.bench import machine
from mlx_dgemma.bench.__main__ import main, table
from mlx_dgemma.bench.chips import Chip
from mlx_dgemma.bench.measure import Options, Report, run_benchmark
from mlx_dgemma.bench.roofline import Widths, floor_seconds, step_stages
from mlx_dgemma.bench.rows import RowSteps, measure_rows
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.diffusion.denoiser import ModelDenoiser
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.prefill import prefill

ROOT = Path(__file__).parents[2]


CHIP = Chip("fixed", gigabytes_per_second=10, teraflops=1)  # measuring this machine takes seconds: one test does


@pytest.fixture(scope="module")
def report() -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "measure", lambda dtype: CHIP)
        return run_benchmark(Options(prompt_length=40, steps=4, repeat=2))


@pytest.mark.slow
def test_json_has_every_field(capsys):
    assert main(["--json", "--steps", "3", "--repeat", "1", "--prompt-length", "20", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1 and list(result) == [f.name for f in fields(Report)]
    assert (result["model"], result["prompt_length"], result["steps"]) == ("embedded", 20, 3)
    most = 1000 if result["device"] == "cpu" else 20_000  # GB/s, far beyond any machine, but not by orders of magnitude
    assert 0.1 < result["gigabytes_per_second"] < most and 0.1 < result["gigaflops"] < 100 * most


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


def test_floors_are_those_of_the_checkpoint_on_the_measured_machine(report):
    config = ModelConfig.from_file(EMBEDDED / "config.json")
    stages = step_stages(config, Widths.of(config, float_bits=32), 40)
    assert report.gigabytes_per_second == 10 and report.gigaflops == 1000
    assert report.floor_ms == pytest.approx(1000 * floor_seconds(stages, CHIP))
    assert report.vocabulary_floor_ms == pytest.approx(2 * 1000 * 100 * 128 * 4 / 10e9)  # twice V·D float32
    assert report.layers_floor_ms == pytest.approx(report.floor_ms - report.vocabulary_floor_ms)


def test_memory_is_weights_prefix_and_some(report):
    on_disk = sum(file.stat().st_size for file in EMBEDDED.glob("*.safetensors"))
    assert 0.9 * on_disk < report.weight_bytes < 2.2 * on_disk  # bfloat16 on disk, float32 on a CPU
    assert report.cache_bytes > 0
    assert report.weight_bytes + report.cache_bytes + report.transient_bytes <= report.peak_bytes
    assert report.transient_bytes < 50e6


@pytest.mark.slow
def test_a_longer_prompt_has_a_larger_prefix(report, monkeypatch):
    monkeypatch.setattr(machine, "measure", lambda dtype: CHIP)
    longer = run_benchmark(Options(prompt_length=400, steps=3, repeat=1))
    assert longer.prompt_length == 400 and longer.cache_bytes > report.cache_bytes


def test_steps_with_fewer_rows_stand_beside_the_full_one(report):
    full, *fewer = report.active_rows
    assert [own.rows for own in report.active_rows] == [64, 48, 32, 24, 16, 8]
    assert (full.step_ratio, full.floor_ratio, full.row_ratio) == (1, 1, 1)
    assert full.floor_ms == pytest.approx(report.floor_ms)
    for own in fewer:
        assert own.gigaflop == pytest.approx(own.row_ratio * full.gigaflop)
        assert own.row_ratio <= own.floor_ratio <= 1 and own.megabytes <= full.megabytes
        assert own.floor_ratio == pytest.approx(own.floor_ms / full.floor_ms)
        assert own.step_ms > 0 and own.step_ratio > 0


def test_a_step_computes_as_many_rows_as_are_asked_for(monkeypatch):
    engine, seen = Engine.load(), []
    cache = engine.model.make_cache()
    prefill(engine.model, mx.array([[5, 6, 7]]), cache)
    real = engine.model.denoise_hidden
    monkeypatch.setattr(engine.model, "denoise_hidden", lambda *a: seen.append(a[0].shape[1]) or real(*a))
    steps = RowSteps(ModelDenoiser(engine.model, cache), SeededNoise(0, engine.model.config.vocab_size), 64)
    rounds = measure_rows(steps, 2)
    assert len(rounds) == 2 and seen == [64, 64, *[64, 48, 32, 24, 16, 8] * 3]


def test_the_table_names_every_figure(report):
    lines = {line[:14].strip(): line[14:] for line in table(report).splitlines()}
    figures = "prefill,step,layers,vocabulary,rest,speed,peak memory,weights,prefix,transient".split(",")
    counts = [str(own.rows) for own in report.active_rows]
    assert list(lines) == ["model", "runs on", *report.environment, *figures, "active rows", *counts]
    assert f"{report.step_ms:.2f} ms" in lines["step"] and f"floor {report.floor_ms:.2f} ms" in lines["step"]
    assert "10.0 GB/s, 1,000 GFLOP/s" in lines["runs on"] and "40 tokens" in lines["prefill"]
    assert lines["weights"].strip() == f"{report.weight_bytes / 1e6:.2f} MB"


def test_the_sample_in_the_docs_is_such_a_table(report):
    def labels(text: str) -> list[str]:
        found = [line[:14].strip() for line in text.splitlines()]
        return found[: found.index("runs on")] + found[found.index("prefill") :]  # those between are a machine's

    sample = re.search(r"^    model  .*?(?=\n\n)", (ROOT / "docs" / "performance.md").read_text("utf-8"), re.S | re.M)
    assert sample and labels(textwrap.dedent(sample[0])) == labels(table(report))


@pytest.mark.parametrize("times", [0.001, 1, 3000])
def test_the_table_fits_a_terminal_of_80_columns(report, times):
    scaled = {f.name: getattr(report, f.name) * times for f in fields(Report) if f.type is float}
    large = replace(report, **scaled, peak_bytes=51_600_000_000, prompt_length=131_072)
    lines = table(replace(large, rest_ms=-large.rest_ms)).splitlines() + table(large).splitlines()
    assert max(map(len, lines)) <= 80 and all(line == line.rstrip() and "e+" not in line for line in lines)
    assert any(line.endswith("51.60 GB") for line in lines)


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"],
        ["--steps", "2"],
        ["--repeat", "0"],
        ["--prompt-length", "0"],
        ["--seed", "-1"],
        ["--seed", str(2**31)],
        ["--steps", "x"],
        ["--unknown"],
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, options):
    with pytest.raises(SystemExit) as stop:
        main(options)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "options", ["--model /nowhere/at/all", f"--model {ROOT}", f"--model {__file__}", "--prompt-length 4033"]
)
def test_failures_are_one_line_and_exit_code_1(capsys, options):
    assert main(options.split()) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_the_longest_prompt_that_fits_is_measured(monkeypatch):
    def measure(dtype):
        raise InterruptedError

    monkeypatch.setattr(machine, "measure", measure)  # comes after the check
    with pytest.raises(InterruptedError):
        run_benchmark(Options(prompt_length=4032))


def test_nothing_heavy_is_imported_for_help():
    code = "import sys; from mlx_dgemma.bench.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'mlx', 'mlx_lm', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
