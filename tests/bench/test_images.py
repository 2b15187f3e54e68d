"""What an image costs: counted from the tensors themselves, and measured on a small checkpoint that sees."""

import json
from pathlib import Path

import pytest

from mlx_dgemma.bench.__main__ import main
from mlx_dgemma.bench.images import image_cost, image_grid, measure_image, page
from mlx_dgemma.bench.roofline import Widths
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.text.images import BUDGETS
from tests.seeing import seeing, seeing_engine, seeing_folder  # noqa: F401

DATA = Path(__file__).parents[1] / "data"
CONTENT = json.loads((DATA / "config.json").read_text())
TEXT, VISION = ModelConfig.from_dict(CONTENT), VisionConfig.from_dict(CONTENT)


@pytest.mark.parametrize("tokens", BUDGETS)
def test_the_tower_multiplies_each_patch_with_each_of_its_matrices(tokens):
    """The published tensor table says which those are; attention comes on top."""
    rows = [line.split("\t") for line in (DATA / "tensors.tsv").read_text().splitlines()]
    shapes = {
        row[0]: tuple(map(int, row[2].split(",")))
        for row in rows
        if "vision_tower" in row[0] and row[0].endswith(".weight")
    }
    weights = sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) == 2)
    patches, heads, layers = 9 * tokens, 16 * 72, 27
    cost = image_cost(TEXT, VISION, Widths(), tokens)
    assert cost.attention == pytest.approx(2 * 2 * patches**2 * heads * layers / 1e12)
    assert cost.tower == pytest.approx(2 * patches * weights / 1e12 + cost.attention)
    assert cost.patches == patches and 0 < cost.share < 1


def test_docs_have_the_table():
    table = page(TEXT, VISION, Widths()).split("\n\n")[-1]
    assert table in (DATA.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")


def test_what_cannot_see_has_no_table():
    content = json.loads((EMBEDDED / "config.json").read_text())
    config, vision = ModelConfig.from_dict(content), VisionConfig.from_dict(content)
    assert vision.has_tokens(config.vocab_size) or page(config, vision, Widths()) == ""
    assert page(config, None, Widths()) == ""


@pytest.mark.parametrize("tokens", [1, 2, 7, 70, 280])
def test_a_grid_is_within_its_budget_and_nearly_square(tokens):
    rows, columns = (side // 3 for side in image_grid(tokens, 3))
    assert tokens - rows < rows * columns <= tokens and rows <= columns <= rows + 3


def test_an_image_is_measured(seeing_engine):  # noqa: F811
    report = measure_image(seeing_engine.model, 20, 2)
    assert (report.tokens, report.patches) == (20, 180)
    assert report.tower_ms > 0 and report.prefill_ms > 0 and report.tower_gigaflops > 0
    assert 0 < report.tower_transient_bytes < 50_000_000


def test_the_command_tells_of_an_image(seeing_folder, capsys):  # noqa: F811
    options = ["--model", str(seeing_folder), "--image-tokens", "20", "--steps", "3", "--repeat", "1"]
    assert main([*options, "--prompt-length", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("image") and "20 tokens of 180 patches" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_what_cannot_be_measured_is_one_line(capsys):
    assert main(["--image-tokens", "20"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "image" in told
    with pytest.raises(SystemExit):
        main(["--image-tokens", "1121"])
    assert "--image-tokens must be from 1 to 1120" in capsys.readouterr().err
