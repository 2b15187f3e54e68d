"""What the graph of a shared step holds, at sizes in small: operations are shared out, keys and values sent once."""

import mlx.core as mx
import pytest

from benchmarks.distributed import PUBLISHED, balance, rank_work
from mlx_dgemma.model.config import ModelConfig

TEXT = {
    **PUBLISHED["text_config"], "vocab_size": 512, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 6,
    "moe_intermediate_size": 16, "num_experts": 8, "top_k_experts": 2, "head_dim": 16, "global_head_dim": 32,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}  # fmt: skip


@pytest.mark.parametrize("n", [2, 4])
def test_a_step_is_shared_out(n):
    config = ModelConfig.from_dict({**PUBLISHED, "canvas_length": 64, "text_config": TEXT})
    (alone,) = [rank_work(config, 0, 1, 20)]
    ranks = [rank_work(config, rank, n, 20) for rank in range(n)]
    assert alone.exchanges == alone.sent == 0
    for name in ("experts", "others"):
        assert sum(getattr(own, name) for own in ranks) == pytest.approx(getattr(alone, name))
    assert balance(ranks) == 1
    kept = sum(2 * layer.num_key_value_heads * layer.head_dim for layer in config.layers)
    for own in ranks:
        assert own.exchanges == len(config.layers) + 1
        assert own.sent == 64 // n * (kept * mx.bfloat16.size + 4 * mx.int32.size)
