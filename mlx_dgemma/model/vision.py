"""The vision tower: the patches of one image become soft tokens, which stand among the text model's embeddings.

The reference is transformers, models/gemma4 (Gemma4VisionModel, and the projector of models/diffusion_gemma), operation
by operation, with one image at a time at its own number of patches: there is no padding, so nothing needs a mask.
Shapes: P patches, rows × columns, in row-major order; N soft tokens; H, the tower's hidden size.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import memory
from mlx_dgemma.model.layers import GatedMLP, fuse_linears, rms_norm, tensors
from mlx_dgemma.model.scores import attend_all
from mlx_dgemma.model.vision_config import VisionConfig

Grid = tuple[int, int]  # rows and columns of patches
Places = tuple[mx.array, mx.array]  # column and row of each patch, (P) each
MLP_ROWS = 1024  # patches that go through an MLP at a time, which makes seven times their size in inner states
_PROJECTIONS = ["q_proj", "k_proj", "v_proj"]


class VisionAttention(nn.Module):
    """Every patch sees every patch, at scale 1, with RMSNorm on queries, keys and (without weight) values.

    Checkpoints keep the projections apart; `fuse` puts them into one matrix.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        hidden, self.heads, self.head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        self.eps, self.rope_theta = config.rms_norm_eps, config.rope_theta
        for name in _PROJECTIONS:
            self[name] = nn.Linear(hidden, self.heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=self.eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=self.eps)

    def __call__(self, x: mx.array, places: Places) -> mx.array:
        """x (P, H) -> (P, H)."""
        heads = self._project(x).reshape(len(x), 3, self.heads, self.head_dim)
        q = turned(self.q_norm(heads[:, 0]), places, self.rope_theta)  # (P, heads, D)
        k = turned(self.k_norm(heads[:, 1]), places, self.rope_theta)
        v = rms_norm(heads[:, 2], self.eps)
        q, k, v = (a.swapaxes(0, 1)[None] for a in (q, k, v))  # (1, heads, P, D)
        out = attend_all(q, k, v)
        projected: mx.array = self.o_proj(out[0].swapaxes(0, 1).reshape(len(x), -1))
        return projected

    def fuse(self) -> None:
        """Replaces the projections by `qkv_proj` where all have the same format."""
        fuse_linears(self, _PROJECTIONS, "qkv_proj")

    def _project(self, x: mx.array) -> mx.array:
        if "qkv_proj" in self:
            together: mx.array = self.qkv_proj(x)
            return together
        return mx.concatenate([self[name](x) for name in _PROJECTIONS], axis=-1)


def turned(x: mx.array, places: Places, theta: float) -> mx.array:
    """Rotary embedding in two directions: the first half of D by column, the second by row, each split-half.

    x (P, heads, D) -> (P, heads, D).
    """
    half = x.shape[-1] // 2
    # every patch a row of its own, which may have an offset of its own: (P, heads, 1, D / 2)
    parts = [
        mx.fast.rope(part, half, traditional=False, base=theta, scale=1.0, offset=place)
        for part, place in zip(mx.split(x[:, :, None], 2, axis=-1), places, strict=True)
    ]
    return mx.concatenate(parts, axis=-1)[:, :, 0]


class VisionLayer(nn.Module):
    """Attention, then a gated MLP, each with a norm before and after it."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = VisionAttention(config)
        self.mlp = GatedMLP(hidden, config.intermediate_size)
        self.input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.post_feedforward_layernorm = nn.RMSNorm(hidden, eps=eps)

    def __call__(self, x: mx.array, places: Places) -> mx.array:
        """x (P, H) -> (P, H)."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), places))
        out: list[mx.array] = []
        for start in range(0, len(x), MLP_ROWS):
            block = x[start : start + MLP_ROWS]
            if out:  # one block after the other, or the inner states of all would be alive at a time
                block = mx.depends([block], [out[-1]])[0]
            out.append(block + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(block))))
        return out[0] if len(out) == 1 else mx.concatenate(out)


class PatchEmbedder(nn.Module):
    """A projection of the pixels plus an embedding of the column and one of the row."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.input_proj = nn.Linear(config.patch_values, config.hidden_size, bias=False)
        self.position_embedding_table = mx.zeros((2, config.position_embedding_size, config.hidden_size))

    def __call__(self, patches: mx.array, grid: Grid) -> mx.array:
        """patches (P, 3 · patch²) in [0, 1] -> (P, H)."""
        rows, columns = grid
        table = self.position_embedding_table
        positions = table[0, None, :columns] + table[1, :rows, None]  # (rows, columns, H)
        pixels: mx.array = self.input_proj((2 * (patches - 0.5)).astype(table.dtype))
        return pixels + positions.reshape(pixels.shape)


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layers = [VisionLayer(config) for _ in range(config.num_hidden_layers)]


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embedder = PatchEmbedder(config)
        self.encoder = VisionEncoder(config)
        if config.standardize:
            self.std_bias = mx.zeros((config.hidden_size,))
            self.std_scale = mx.ones((config.hidden_size,))

    def __call__(self, patches: mx.array, grid: Grid) -> mx.array:
        """patches (P, 3 · patch²) in [0, 1] -> (N, H)."""
        rows, columns = grid
        at = mx.arange(rows * columns)
        places = at % columns, at // columns
        x = self.patch_embedder(patches, grid)
        for layer in self.encoder.layers:
            x = layer(x, places)
        return self._standardized(self._pooled(x, grid)).astype(x.dtype)

    def _pooled(self, x: mx.array, grid: Grid) -> mx.array:
        """Means of square cells, times √H: (P, H) -> (N, H), float32: they reach 79,000, where bfloat16 has steps of
        512 and float16 ends."""
        (rows, columns), side = grid, self.config.pooling_kernel_size
        cells = x.astype(mx.float32).reshape(rows // side, side, columns // side, side, -1)
        return cells.mean(axis=(1, 3)).reshape(-1, x.shape[-1]) * math.sqrt(x.shape[-1])

    def _standardized(self, x: mx.array) -> mx.array:
        """(N, H) -> (N, H), float32."""
        if not self.config.standardize:
            return x
        return (x - self.std_bias.astype(mx.float32)) * self.std_scale.astype(mx.float32)


class Projector(nn.Module):
    """RMSNorm without weight, then a matrix into the text model's space, where soft tokens are not scaled."""

    def __init__(self, config: VisionConfig, text_hidden: int):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.embedding_projection = nn.Linear(config.hidden_size, text_hidden, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(N, H) -> (N, text hidden)."""
        projected: mx.array = self.embedding_projection(rms_norm(x, self.eps))
        return projected


class Vision(nn.Module):
    """Tower and projector, under the checkpoint's names."""

    def __init__(self, config: VisionConfig, text_hidden: int):
        super().__init__()
        self.vision_tower = VisionTower(config)
        self.embed_vision = Projector(config, text_hidden)

    def __call__(self, patches: mx.array, grid: Grid) -> mx.array:
        """patches (P, 3 · patch²) in [0, 1], float32 -> (N, text hidden)."""
        return self.embed_vision(self.vision_tower(patches, grid))

    def fuse(self) -> None:
        """Puts matrices that read the same input into one."""
        for layer in self.vision_tower.encoder.layers:
            layer.self_attn.fuse()
            layer.mlp.fuse()


class Eyes:
    """What a checkpoint sees images with: the tower's configuration, and the tower itself from the first image on.

    One thread at a time may use it, and the same one always: the tower's arrays belong to the thread that reads them.
    """

    def __init__(self, config: VisionConfig, load: Callable[[], Vision], dtype: mx.Dtype | None = None):
        """
        Args:
            config: of the tower.
            load: reads it; called once, at the first image.
            dtype: of what `see` gives, the text model's; None leaves the tower's.
        """
        self.config = config
        self._load, self._dtype = load, dtype
        self._vision: Vision | None = None

    @property
    def is_loaded(self) -> bool:
        return self._vision is not None

    @property
    def nbytes(self) -> int:
        """Of the weights in memory: 0 before the first image."""
        return 0 if self._vision is None else sum(array.nbytes for array in tensors(self._vision).values())

    def see(self, patches: mx.array, grid: Grid) -> mx.array:
        """The soft tokens of one image, computed.

        Args:
            patches: (P, 3 · patch²), float32 in [0, 1], row by row; of each patch the rows, columns and colours.
            grid: rows and columns of patches, both multiples of `config.pooling_kernel_size`.

        Returns:
            (1, N, text hidden), to stand among scaled embeddings as they are.

        Raises:
            DGemmaError: an image that does not fit the tower; weights that cannot be read.
        """
        self._check(patches, grid)
        if self._vision is None:
            self._vision = self._load()
        features = self._vision(patches, grid)[None]
        features = features if self._dtype is None else features.astype(self._dtype)
        memory.finish([features])
        mx.clear_cache()
        return features

    def _check(self, patches: mx.array, grid: Grid) -> None:
        (rows, columns), side, most = grid, self.config.pooling_kernel_size, self.config.position_embedding_size
        if (
            patches.shape != (rows * columns, self.config.patch_values)
            or rows % side
            or columns % side
            or not patches.size
        ):
            expected = f"of {self.config.patch_values} numbers, a multiple of {side} in a row and in a column"
            raise DGemmaError(f"patches {patches.shape} are no image of {rows} × {columns} patches {expected}")
        if max(grid) > most:
            raise DGemmaError(
                f"an image of {rows} × {columns} patches is beyond this vision tower, which knows {most} places in a "
                "row or a column; take a smaller budget of image tokens"
            )
