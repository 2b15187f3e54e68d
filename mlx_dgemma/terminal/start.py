"""From the options to an engine, with what must be said of it before it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_dgemma.terminal import signals
from mlx_dgemma.terminal.cli import say

if TYPE_CHECKING:
    from mlx_dgemma.distributed.session import Session
    from mlx_dgemma.text.engine import Engine


def load_engine(model: str | None, dtype: str | None = None, *, wire: bool = True, quiet: bool = False) -> Engine:
    """Loads a checkpoint; unless `quiet`, warns of one that cannot do well here.

    Args:
        model: a folder or a hub repository; None is the embedded one.
        dtype: by name; None is the checkpoint's own.
        wire: whether a Mac may be asked to keep the weights in memory.
        quiet: says nothing.
    """
    with signals.uninterrupted():  # an interrupt inside a compiled module that is being imported ends in an abort
        import mlx.core as mx

        from mlx_dgemma.model import host, memory, trust
        from mlx_dgemma.text.engine import Engine
    memory.use_wiring(wire)
    engine = Engine.load(model, dtype=None if dtype is None else getattr(mx, dtype))
    warnings = [memory.warning(engine.model.nbytes)]
    if trust.distrusted():
        warnings.append(
            f"on this GPU MLX {host.MLX_VERSION} computes wrongly: {', '.join(trust.distrusted())}; plain operations "
            "take their place, which is slower"
        )
    if not engine.model.config.denoiser_trained:
        warnings.append("this denoiser is untrained (patched Gemma 4 weights); expect noise")
    for warning in warnings:
        if warning is not None and not quiet:
            say(f"warning: {warning}")
    return engine


def share(session: Session, engine: Engine, model: str | None, *, quiet: bool = False) -> None:
    """Shares an engine's passes with the other ranks, and says how fast that is.

    Raises:
        DGemmaError: ranks that do not fit together.
    """
    speed = session.attach(engine, model)
    if not quiet:
        say(speed.line())
    if (warning := speed.warning()) and session.is_first:
        say(f"warning: {warning}")


def remembering(engine: Engine, folder: str | None, tell: Callable[[str], None]) -> Engine:
    """The engine with a store of prefixes: of this process, and of earlier ones if there is a folder.

    Raises:
        DGemmaError: the folder cannot be made or read.
    """
    from mlx_dgemma.text.kept import PrefixFolder
    from mlx_dgemma.text.prefixes import PrefixStore

    shelf = None if folder is None else PrefixFolder(folder, engine.model, tell=tell)
    return replace(engine, prefixes=PrefixStore(shelf=shelf))
