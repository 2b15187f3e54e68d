"""What each of N ranks takes of every weight: all of it once, whole groups, and about as much as the others."""

from pathlib import Path

import pytest

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.cut import Cut, Units, cuts

GROUPS = Units(64, 64, 64)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.from_file(Path(__file__).parents[1] / "data" / "config.json")


def of(config: ModelConfig, size: int, units: Units = GROUPS) -> list[Cut]:
    return cuts(config, [units] * len(config.layers), size)


def flat(ranges) -> list[int]:
    return [i for own in ranges for i in own]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("units", [GROUPS, Units()])
def test_everything_is_taken_once_and_no_group_is_cut(config, size, units):
    ranks = of(config, size, units)
    assert flat(cut.rows for cut in ranks) == list(range(config.vocab_size))
    for i, layer in enumerate(config.layers):
        own = [cut.layers[i] for cut in ranks]
        assert flat(cut.heads for cut in own) == list(range(config.num_attention_heads))
        assert sorted({*flat(cut.kv_heads for cut in own)}) == list(range(layer.num_key_value_heads))
        assert flat(cut.dense for cut in own) == list(range(config.intermediate_size))
        assert flat(cut.experts for cut in own) == list(range(config.moe_intermediate_size))
        for cut in own:
            assert all(end % units.dense == 0 for end in (cut.dense.start, cut.dense.stop))
            assert all(end % units.experts == 0 for end in (cut.experts.start, cut.experts.stop))
            per = config.num_attention_heads // layer.num_key_value_heads
            assert {head // per for head in cut.heads} == {*cut.kv_heads}  # those that its queries read
            assert len(cut.heads) % len(cut.kv_heads) == 0


def test_four_ranks_share_two_key_value_heads(config):
    full = next(i for i, layer in enumerate(config.layers) if layer.num_key_value_heads == 2)
    assert [list(cut.layers[full].kv_heads) for cut in of(config, 4)] == [[0], [0], [1], [1]]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_do_and_hold_about_the_same(config, size):
    def work(layer):
        return config.top_k_experts * len(layer.experts) + len(layer.dense)

    ranks = of(config, size)
    whole = config.top_k_experts * config.moe_intermediate_size + config.intermediate_size
    assert max(work(layer) for cut in ranks for layer in cut.layers) * size < 1.05 * whole
    held = [sum(map(len, (layer.experts for layer in cut.layers))) for cut in ranks]
    assert max(held) * size < 1.05 * sum(held)


def test_slices_of_packed_elements_and_of_scales(config):
    cut = of(config, 2)[1]
    part = cut.part("model.decoder.layers.0.experts.down_proj.weight")
    assert part.axis == 2 and part.within(704) == [range(384, 704)]  # 6 and 5 groups
    assert part.within(704 // 8) == [range(48, 88)] and part.within(11) == [range(6, 11)]
    part = cut.part("model.decoder.layers.0.experts.gate_up_proj.scales")
    assert part.axis == 1 and part.within(1408) == [range(384, 704), range(1088, 1408)]
    for name in ("router.proj.weight", "layer_scalar", "input_layernorm.weight"):
        assert cut.part(f"model.decoder.layers.0.{name}") is None
    assert cut.part("model.decoder.self_conditioning.down_proj.weight") is None


@pytest.mark.parametrize(
    ("size", "units", "why"),
    [
        (3, GROUPS, "16 query heads; 1, 2, 4, 8 can"),
        (16, GROUPS, "11 groups of 64 columns in its experts"),
        (16, Units(512, 1, 1), "groups of 512 in o_proj"),
        (0, GROUPS, "query heads"),
    ],
)
def test_other_numbers_of_ranks_are_refused_in_one_line(config, size, units, why):
    with pytest.raises(DGemmaError, match=f"{size} ranks cannot share") as error:
        of(config, size, units)
    assert why in str(error.value) and "\n" not in str(error.value)
