"""DiffusionGemma, Google's text-diffusion model, on Apple's MLX."""

from importlib import import_module

TYPE_CHECKING = False  # for type checkers, which take it for true; `typing` would take a moment

if TYPE_CHECKING:
    from mlx_dgemma.checkpoint.loading import load
    from mlx_dgemma.diffusion.settings import GenerationConfig
    from mlx_dgemma.diffusion.settling import Settling
    from mlx_dgemma.errors import DGemmaError
    from mlx_dgemma.text.engine import Engine
    from mlx_dgemma.text.request import CanvasPlan, Request
    from mlx_dgemma.text.shortcuts import choose, generate_samples, generate_text, stream_generate

__version__ = "0.1.0"
__all__ = [
    "CanvasPlan", "DGemmaError", "Engine", "GenerationConfig", "Request", "Settling", "choose", "generate_samples",
    "generate_text", "load", "stream_generate",
]  # fmt: skip

_HOME = {
    "CanvasPlan": "text.request",
    "DGemmaError": "errors",
    "Engine": "text.engine",
    "GenerationConfig": "diffusion.settings",
    "Request": "text.request",
    "Settling": "diffusion.settling",
    "choose": "text.shortcuts",
    "generate_samples": "text.shortcuts",
    "generate_text": "text.shortcuts",
    "load": "checkpoint.loading",
    "stream_generate": "text.shortcuts",
}


if not TYPE_CHECKING:  # a type checker that knew of it would take any name

    def __getattr__(name: str) -> object:
        # Imported at first use: MLX takes a moment, and `--help` should not.
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
