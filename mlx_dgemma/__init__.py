"""DiffusionGemma, Google's text-diffusion model, on Apple's MLX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_dgemma.checkpoint.loading import load
    from mlx_dgemma.diffusion.settings import GenerationConfig
    from mlx_dgemma.errors import DGemmaError
    from mlx_dgemma.text.choose import choose
    from mlx_dgemma.text.generation import generate_text, stream_generate
    from mlx_dgemma.text.samples import generate_samples

__version__ = "0.1.0"
__all__ = [
    "DGemmaError", "GenerationConfig", "choose", "generate_samples", "generate_text", "load", "stream_generate",
]  # fmt: skip

_HOME = {
    "DGemmaError": "errors",
    "GenerationConfig": "diffusion.settings",
    "choose": "text.choose",
    "generate_samples": "text.samples",
    "generate_text": "text.generation",
    "load": "checkpoint.loading",
    "stream_generate": "text.generation",
}


def __getattr__(name: str) -> Any:
    # Imported at first use: MLX and mlx-lm take seconds, and `--help` should not.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
