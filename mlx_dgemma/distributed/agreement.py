"""Together or not at all: ranks compare what has to be the same everywhere, before they begin."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mlx_dgemma import __version__
from mlx_dgemma.checkpoint.headers import read_headers
from mlx_dgemma.checkpoint.loading import resolve
from mlx_dgemma.distributed.exchange import Exchange
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import read_file
from mlx_dgemma.model import host
from mlx_dgemma.text.engine import Engine
from mlx_dgemma.text.run import Run

_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
          "chat_template.jinja", "chat_template.json")  # fmt: skip
SHOWN = 40  # characters of a value that is told


def agree(exchange: Exchange, facts: Mapping[str, str]) -> None:
    """Compares facts of all ranks.

    Raises:
        DGemmaError: on every rank, what differs where.
    """
    everywhere = exchange.objects(dict(facts))
    first = everywhere[0]
    for rank, theirs in enumerate(everywhere[1:], 1):
        for name in [*first, *(name for name in theirs if name not in first)]:
            a, b = (str(own.get(name, "missing"))[:SHOWN] for own in (first, theirs))
            if first.get(name) != theirs.get(name):
                raise DGemmaError(
                    f"rank {rank} has another {name} than rank 0 ({b}, not {a}); to write together they need the same"
                )


def versions() -> dict[str, str]:
    return {"version of mlx-dgemma": __version__, "version of MLX": host.MLX_VERSION}


def checkpoint_facts(engine: Engine, model: str | None) -> dict[str, str]:
    """What tells checkpoints apart without reading weights: their headers, and all of the small files.

    Args:
        engine: of the checkpoint.
        model: the folder or repository that it was loaded from.
    """
    folder = resolve(model)
    facts = {name: _digest(folder / name) for name in _FILES if (folder / name).is_file()}
    weights = hashlib.sha256()
    for name, tensor in sorted(read_headers(folder).items()):
        place = tensor.file.name, tensor.offset, tensor.nbytes
        weights.update(repr((name, tensor.dtype, tensor.shape, *place)).encode())
    types = {"type of weights": str(engine.model.embedding_scale.dtype)}
    return {**facts, **types, "weights": weights.hexdigest()}


def request_facts(run: Run) -> dict[str, str]:
    """What tells requests apart."""
    request = run.request
    asked = (request.samples, request.mode, request.repair, request.causal_log_p, request.alternatives, request.stop)
    return {
        "prompt": hashlib.sha256(repr(run.names).encode()).hexdigest(),
        "seed": str(request.seed),
        "settings": repr(run.settings),
        "canvas": hashlib.sha256(repr((run.given, request.plan.draft, request.plan.noise)).encode()).hexdigest(),
        "request": repr((*asked, request.response_format, request.tool_choice, request.thinking)),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(read_file(path)).hexdigest()
