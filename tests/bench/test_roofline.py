"""The step's arithmetic against an independent count of the published model, and how it scales."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import roofline as script
from mlx_dgemma.bench.chips import CHIPS, Chip
from mlx_dgemma.bench.roofline import (
    Stage,
    Widths,
    floor_seconds,
    main,
    quantized_bits,
    step_stages,
    tokens_per_second,
    touched_experts,
)
from mlx_dgemma.model.config import ModelConfig

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "data" / "config.json"
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
PUBLISHED = ModelConfig.from_file(CONFIG)
ATTENTION = ("attention, sliding layers", "attention, full layers")
BF16 = Widths()
lengths = st.integers(0, 200_000)


def stages(prefix: int, canvas: int | None = None, widths: Widths = BF16) -> dict[str, Stage]:
    return {s.name: s for s in step_stages(PUBLISHED, widths, prefix, canvas)}


def test_gflop_of_the_published_model_by_stage():
    # counted by hand from the published sizes: 30 layers (5 full), hidden 2816, canvas 256
    expected = {
        "experts": 2 * 256 * 8 * 3 * 2816 * 704 * 30,
        "dense MLP": 2 * 256 * 3 * 2816 * 2112 * 30,
        "attention projections": 2 * 256 * 2816 * (25 * (2 * 4096 + 2 * 2048) + 5 * (2 * 8192 + 1024)),
        "vocabulary scores": 2 * 256 * 262_144 * 2816,
        "soft embeddings": 2 * 256 * 262_144 * 2816,
        "router": 2 * 256 * 2816 * 128 * 30,
        "self-conditioning MLP": 2 * 256 * 3 * 2816 * 2112,
    }
    counted = stages(1024)
    assert {name: counted[name].flops for name in expected} == expected
    total = sum(flops for name, flops in expected.items() if name != "self-conditioning MLP")
    assert total / 1e9 == pytest.approx(2335, abs=0.5)


@pytest.mark.parametrize(("prefix", "gflop"), [(1024, 188), (8192, 489), (32_768, 1519), (131_072, 5643)])
def test_gflop_of_attention_scores(prefix, gflop):
    counted = stages(prefix)
    assert sum(counted[name].flops for name in ATTENTION) / 1e9 == pytest.approx(gflop, abs=1)


def test_experts_are_the_bytes():
    four_bits = replace(Widths(), experts=quantized_bits(4, 64))
    assert stages(1024)["experts"].nbytes / 1e9 == pytest.approx(45.7, abs=0.1)
    assert stages(1024, widths=four_bits)["experts"].nbytes / 1e9 == pytest.approx(12.8, abs=0.1)
    assert stages(1024)["vocabulary scores"].nbytes == 2 * 262_144 * 2816


def test_full_layers_read_the_prefix_and_sliding_ones_their_window():
    full, sliding = stages(8192)[ATTENTION[1]], stages(8192)[ATTENTION[0]]
    assert full.nbytes == 5 * 2 * 2 * 512 * (8192 + 256) * 2
    assert sliding.nbytes == 25 * 2 * 8 * 256 * (1023 + 256) * 2


@given(lengths, lengths)
def test_more_prefix_is_never_less_work(a, b):
    short, long = stages(min(a, b)), stages(max(a, b))
    for name in short:
        assert short[name].flops <= long[name].flops and short[name].nbytes <= long[name].nbytes
        if name not in ATTENTION:
            assert short[name] == long[name]


@given(lengths, st.integers(1, 1024), st.integers(2, 5))
def test_products_grow_linearly_with_the_canvas_and_weights_do_not(prefix, canvas, factor):
    one, many = stages(prefix, canvas), stages(prefix, factor * canvas)
    for name in one.keys() - set(ATTENTION):
        assert many[name].flops == pytest.approx(factor * one[name].flops)
        assert name == "experts" or many[name].nbytes == one[name].nbytes
    for name in ATTENTION:  # every canvas token also sees the longer canvas
        assert many[name].flops > factor * one[name].flops
    assert one["experts"].nbytes <= many["experts"].nbytes <= factor * one["experts"].nbytes


@given(st.integers(1, 256), st.integers(1, 4096))
def test_touched_experts_are_bounded(experts, picks):
    touched = touched_experts(experts, picks)
    assert touched <= min(experts, picks) * (1 + 1e-9)
    assert touched >= 1 - 1e-9
    assert touched_experts(experts, 1) == pytest.approx(1)


def test_two_picks_of_two_experts_touch_one_and_a_half():
    assert touched_experts(2, 2) == 1.5


@given(st.floats(1, 1000), st.floats(0.1, 100), lengths)
def test_the_floor_is_above_either_bound(bandwidth, peak, prefix):
    parts = step_stages(PUBLISHED, Widths(), prefix)
    floor = floor_seconds(parts, Chip("any", bandwidth, peak))
    compute, memory = sum(s.flops for s in parts) / (peak * 1e12), sum(s.nbytes for s in parts) / (bandwidth * 1e9)
    assert max(compute, memory) * (1 - 1e-9) <= floor <= (compute + memory) * (1 + 1e-9)


def test_tokens_per_second():
    assert tokens_per_second(256, 16, 0.1) == pytest.approx(160)


def test_chips_are_named_once_and_only_accelerators_are_estimates():
    assert len({chip.name for chip in CHIPS}) == len(CHIPS)
    assert all(chip.is_estimate == chip.name.startswith("M5") for chip in CHIPS)
    peaks = {chip.name: chip.teraflops for chip in CHIPS}
    assert peaks["M1 Max"] == pytest.approx(10.6, abs=0.1)  # Apple has said 10.4


def test_widths_of_a_quantization_dict():
    content = json.loads(CONFIG.read_text())
    path = "model.decoder.layers.{}.{}"
    overrides = {"model.decoder.embed_tokens": {"group_size": 64, "bits": 8}, path.format(0, "router.proj"): False}
    content["quantization"] = {"group_size": 64, "bits": 4, **overrides}
    widths = Widths.of(ModelConfig.from_dict(content))
    assert widths == Widths(
        attention=4.5,
        dense=4.5,
        experts=4.5,
        router=(29 * 4.5 + 16) / 30,
        self_conditioning=4.5,
        embedding=8.5,
        cache=16,
    )
    # of a checkpoint, what has no scales is not quantized
    names = {f"{path.format(i, 'experts')}.{n}.scales" for i in range(30) for n in ("gate_up_proj", "down_proj")}
    assert Widths.of(ModelConfig.from_dict(content), names) == replace(Widths(), experts=4.5, embedding=8.5)


def test_widths_of_formats():
    assert quantized_bits(4, 64) == 4.5
    assert quantized_bits(4, 32, "mxfp4") == 4.25
    assert Widths.of(PUBLISHED) == Widths()
    assert Widths.of(PUBLISHED, float_bits=32).cache == 32


def test_command_prints_both_tables(capsys):
    assert main(["--prefix", "300", "--bits", "4", "--steps", "7"]) == 0
    out = capsys.readouterr().out
    assert "prefix 300" in out and "4.5 bits per expert weight" in out and "at 7 steps" in out
    assert "| experts |" in out and all(f"| {chip.name} |" in out for chip in CHIPS)


@pytest.mark.parametrize("options", [["--prefix", "-1"], ["--steps", "0"], ["--bits", "5"], ["--prefix", "many"]])
def test_bad_usage_is_one_line_and_exit_code_2(capsys, options):
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_missing_folder_is_exit_code_1(capsys, tmp_path):
    assert main(["--model", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_page_has_the_tables_that_the_script_prints(capsys):
    script.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 3 and [t.splitlines()[0] for t in tables if t not in PAGE] == []


def test_the_pages_reading_of_its_tables():
    assert "On M1 to M4, with 4-bit experts, every stage is bound by arithmetic" in PAGE
    for chip in CHIPS:
        for name, widths in script.RECIPES.items():
            bound = [s.name for s in step_stages(PUBLISHED, widths, 8192) if s.is_memory_bound(chip)]
            assert bound == ([] if name == "4-bit" and not chip.is_estimate else ["experts"])
    floors = {n: [floor_seconds(step_stages(PUBLISHED, w, 8192), c) for c in CHIPS] for n, w in script.RECIPES.items()}
    more = [100 * (b / a - 1) for a, b in zip(floors["4-bit"], floors["bf16"], strict=True)]
    shaders = [m for m, chip in zip(more, CHIPS, strict=True) if not chip.is_estimate]
    assert f"takes {min(shaders):.0f} to {max(shaders):.0f} % longer" in " ".join(PAGE.split())
    balance = [1000 * c.teraflops / c.gigabytes_per_second for c in CHIPS if not c.is_estimate]
    assert f"the chips {min(balance):.0f} to {max(balance):.0f}" in " ".join(PAGE.split())


def test_floors_beside_reports_are_those_of_the_table():
    section = PAGE.split("What others have reported")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (M\d[^|]*) \| ([^|]+) \| [^|]+ \| (?:about )?(\d+) \| (\d+) \| (\d+) % \|$", section, re.M)
    chips = {chip.name: chip for chip in CHIPS}
    assert len(rows) == section.count("\n| M")
    for name, weights, reported, floor, percent in rows:
        recipe = script.RECIPES["bf16" if weights == "bf16" else "4-bit"]
        expected = 1000 * floor_seconds(step_stages(PUBLISHED, recipe, 1024), chips[name])
        assert (int(floor), int(percent)) == (round(expected), round(100 * expected / int(reported)))


def test_commands_and_modules_of_the_page_exist():
    commands = set(re.findall(r"python -m ([\w.]+)", PAGE))
    assert commands and all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in commands)
    modules = set(re.findall(r"\((?:[^()|]*; )?`(\w+)`\) \|", PAGE))
    assert {"fused", "vocabulary", "scores", "cpu"} <= modules
    assert modules <= {path.stem for path in (ROOT / "mlx_dgemma" / "model").glob("*.py")} | {"vocabulary"}


def test_links_of_the_page_lead_somewhere():
    def anchors(text: str) -> set[str]:
        heads = re.findall(r"^#+ (.+)$", text, re.M)
        return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}

    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", PAGE)
    assert links
    for file, anchor in links:
        text = (ROOT / "docs" / file).read_text(encoding="utf-8") if file else PAGE
        assert not anchor or anchor in anchors(text)
