"""The vision tower against the reference: images of several sizes in one padded batch there, one by one here."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import Gemma4VisionConfig, Gemma4VisionModel

from mlx_dgemma import DGemmaError
from mlx_dgemma.model import cpu, memory, vision
from mlx_dgemma.model.vision import Eyes, Vision, VisionTower
from mlx_dgemma.model.vision_config import VisionConfig

SIZES = {
    "model_type": "gemma4_vision", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "patch_size": 4, "position_embedding_size": 60,
    "pooling_kernel_size": 3,
}  # fmt: skip
TOKENS = {"image_token_id": 90, "boi_token_id": 91, "eoi_token_id": 92}
GRIDS = [(3, 3), (6, 9), (12, 3), (3, 57), (15, 12)]
TOLERANCE = 1e-4  # of the scale of what is compared


@torch.no_grad()
def random_tower(standardize: bool) -> Gemma4VisionModel:
    """A reference tower whose every parameter matters; the position table is not the ones that it starts from."""
    torch.manual_seed(0)
    config = Gemma4VisionConfig(**SIZES, standardize=standardize, initializer_range=0.2)
    model = Gemma4VisionModel._from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    model.patch_embedder.position_embedding_table.normal_()
    if standardize:
        model.std_bias.normal_()
        model.std_scale.uniform_(0.5, 1.5)
    return model


def config_of(model: Gemma4VisionModel) -> VisionConfig:
    config = VisionConfig.from_dict({"vision_config": model.config.to_dict(), **TOKENS})
    assert config is not None
    return config


def ours(model: Gemma4VisionModel, fuse: bool = True) -> VisionTower:
    tree = Vision(config_of(model), 8)
    state = {name.replace(".linear.", "."): mx.array(t.numpy()) for name, t in model.state_dict().items()}
    tree.vision_tower.load_weights(list(state.items()))
    if fuse:
        tree.fuse()
    return tree.vision_tower


def picture(grid: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *grid)).random((grid[0] * grid[1], 48), np.float32)


@torch.no_grad()
def expected(model: Gemma4VisionModel, grids: list[tuple[int, int]]) -> list[np.ndarray]:
    """The reference's soft tokens of all images from one batch, padded to the largest."""
    most = max(rows * columns for rows, columns in grids)
    pixels, places = np.zeros((len(grids), most, 48), np.float32), np.full((len(grids), most, 2), -1)
    for i, (rows, columns) in enumerate(grids):
        pixels[i, : rows * columns] = picture((rows, columns))
        places[i, : rows * columns] = [(x, y) for y in range(rows) for x in range(columns)]
    out = model(pixel_values=torch.tensor(pixels), pixel_position_ids=torch.tensor(places)).last_hidden_state
    return list(np.split(out.numpy(), np.cumsum([rows * columns // 9 for rows, columns in grids])[:-1]))


def close(got: mx.array, wanted: np.ndarray) -> bool:
    assert got.shape == wanted.shape
    return bool(np.abs(np.array(got) - wanted).max() <= TOLERANCE * np.abs(wanted).max())


@pytest.fixture(scope="module")
def reference() -> Gemma4VisionModel:
    return random_tower(standardize=True)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("fuse", [True, False])
def test_soft_tokens_are_the_references(standardize, fuse):
    model = random_tower(standardize)
    tower = ours(model, fuse)
    for grid, wanted in zip(GRIDS, expected(model, GRIDS), strict=True):
        assert wanted.std() > 0.5
        assert close(tower(mx.array(picture(grid)), grid), wanted)


def test_rows_and_columns_are_no_synonyms(reference):
    """The same patches, laid out otherwise: what the comparison above would miss with a table of equal rows."""
    grid, tower = (6, 9), ours(reference)
    patches = mx.array(picture(grid))
    assert not close(tower(patches, (9, 6)), np.array(tower(patches, grid)))


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_blocks_change_nothing(reference, monkeypatch, rows):
    grid = GRIDS[-1]
    (wanted,) = expected(reference, [grid])
    monkeypatch.setattr(vision, "MLP_ROWS", rows)
    monkeypatch.setattr(cpu, "SCORE_BYTES", 64 * rows)
    assert close(ours(reference)(mx.array(picture(grid)), grid), wanted)


def transient(run) -> int:
    """Bytes beside what was there that computing `run()` takes at most."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    memory.finish([run()])
    return mx.get_peak_memory() - before


def test_memory_does_not_grow_with_the_square_of_the_image(reference, monkeypatch):
    """Four times the patches: their states grow with them, the scores (sixteen times as many) do not."""
    monkeypatch.setattr(cpu, "SCORE_BYTES", 1 << 18)
    tower = ours(reference)

    def needed(grid: tuple[int, int]) -> int:
        patches = mx.array(picture(grid))
        mx.eval(patches, tower.parameters())
        return transient(lambda: tower(patches, grid))

    small, large = needed((18, 18)), needed((36, 36))
    assert large < 6 * small and large < 4 * SIZES["num_attention_heads"] * (36 * 36) ** 2 / 2


def test_an_mlp_has_the_inner_states_of_one_block_at_a_time(monkeypatch):
    monkeypatch.setattr(vision, "attend_all", lambda q, k, v: v)
    monkeypatch.setattr(vision, "MLP_ROWS", 256)
    content = {"vision_config": {**SIZES, "intermediate_size": 4096, "standardize": False}, **TOKENS}
    layer = vision.VisionLayer(VisionConfig.from_dict(content))
    layer.mlp.fuse()
    x, place = mx.zeros((256 * 16, 48)), mx.arange(256 * 16)
    mx.eval(layer.parameters(), x, place)
    two, all_of_them = transient(lambda: layer(x[:512], (place[:512],) * 2)), transient(lambda: layer(x, (place,) * 2))
    assert all_of_them < 2 * two


def test_pooling_and_standardisation_are_in_float32(reference):
    """Sums of large states, as real images make them: half precision would end at 65,504, and coarsely."""
    tower = ours(reference)
    x = mx.random.normal((9, 48), key=mx.random.key(0)) + 15_000
    tower.std_bias = mx.full((48,), 15_000 * 48**0.5)
    half = x.astype(mx.float16)
    got = tower._standardized(tower._pooled(half, (3, 3)))
    exact = np.array(half).astype(np.float64).mean(axis=0) * 48**0.5
    assert exact.max() > 65_504
    np.testing.assert_allclose(np.array(got)[0], (exact - 15_000 * 48**0.5) * np.array(tower.std_scale), atol=0.1)


class Loader:
    """Hands out a tower and counts how often."""

    def __init__(self, model: Gemma4VisionModel):
        self.tree, self.calls = Vision(config_of(model), 8), 0

    def __call__(self) -> Vision:
        self.calls += 1
        return self.tree


def test_eyes_are_opened_by_the_first_image_and_stay_open(reference):
    loader = Loader(reference)
    eyes = Eyes(config_of(reference), loader, mx.float16)
    assert (eyes.is_loaded, eyes.nbytes, loader.calls) == (False, 0, 0)
    first = eyes.see(mx.array(picture((6, 9))), (6, 9))
    assert (first.shape, first.dtype) == ((1, 6, 8), mx.float16)
    again = eyes.see(mx.array(picture((6, 9))), (6, 9))
    assert mx.array_equal(first, again)
    assert eyes.is_loaded and loader.calls == 1 and eyes.nbytes > 4 * 2 * 60 * 48


@pytest.mark.parametrize(
    ("shape", "grid", "complaint"),
    [
        ((54, 48), (9, 9), "patches (54, 48) are no image of 9 × 9 patches of 48 numbers"),
        ((54, 47), (6, 9), "patches (54, 47) are no image"),
        ((20, 48), (4, 5), "a multiple of 3 in a row and in a column"),
        ((0, 48), (0, 3), "are no image of 0 × 3 patches"),
        ((189, 48), (3, 63), "an image of 3 × 63 patches is beyond this vision tower, which knows 60 places"),
    ],
)
def test_what_is_no_image_for_this_tower(reference, shape, grid, complaint):
    loader = Loader(reference)
    with pytest.raises(DGemmaError) as error:
        Eyes(config_of(reference), loader).see(mx.zeros(shape), grid)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert loader.calls == 0
