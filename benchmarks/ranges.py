"""Would float16 hold? A checkpoint's largest absolute activations beside 65,504, which is all that float16 reaches.

python -m benchmarks.ranges --model FOLDER --prompt "Why is the sky blue?"

Activations are computed in the type that the checkpoint loads in (bfloat16 on a GPU, float32 on a CPU), which reaches
far beyond float16, and looked at in both modes while one canvas is written.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx

from mlx_dgemma import Engine, GenerationConfig, Request
from mlx_dgemma.model import fused
from mlx_dgemma.model.diffusion_gemma import Layer, SelfConditioning
from mlx_dgemma.model.moe import Experts, Router
from mlx_dgemma.terminal.cli import Parser, exit_code

LARGEST = float(mx.finfo(mx.float16).max)
PLACES = ("residual stream", "soft embeddings", "inside MLP and experts", "experts, summed", "router's scores")


@contextmanager
def watched(largest: dict[str, float]) -> Iterator[None]:
    """Keeps the largest absolute value seen at each place."""

    def note(place: str, x: mx.array) -> None:
        found = float(mx.abs(x.astype(mx.float32)).max().item())
        largest[place] = max(largest.get(place, 0.0), found)

    def after(place: str, call: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def wrapped(*args: Any) -> mx.array:
            result = call(*args)
            note(place, result)
            return result

        return wrapped

    mix, route = SelfConditioning.__call__, Router.__call__

    def conditioned(self: SelfConditioning, embeddings: mx.array, soft: mx.array | None) -> mx.array:
        if soft is not None:
            note(PLACES[1], soft)
        return mix(self, embeddings, soft)

    def routed(self: Router, x: mx.array) -> tuple[mx.array, mx.array]:
        note(PLACES[4], self.proj(mx.fast.rms_norm(x, self.scale * self.root_size, self.eps)))
        return route(self, x)

    with ExitStack() as patched:
        for patch in (
            mock.patch.object(Layer, "__call__", after(PLACES[0], Layer.__call__)),
            mock.patch.object(SelfConditioning, "__call__", conditioned),
            mock.patch.object(fused, "geglu", after(PLACES[2], fused.geglu)),
            mock.patch.object(Experts, "__call__", after(PLACES[3], Experts.__call__)),
            mock.patch.object(Router, "__call__", routed),
        ):
            patched.enter_context(patch)
        yield


def table(engine: Engine, prompt: str) -> str:
    """A line a place: the largest absolute value, and how far float16 reaches beyond it."""
    largest: dict[str, float] = {}
    length = engine.model.config.canvas_length
    with watched(largest):
        engine.generate(Request(prompt, settings=GenerationConfig(max_new_tokens=length)))
    lines = ["| place | largest | float16 reaches |", "|---|---|---|"]
    lines += [f"| {place} | {largest[place]:,.1f} | {LARGEST / largest[place]:,.0f} times that |" for place in PLACES]
    return "\n".join(lines)


def run(argv: list[str] | None) -> int:
    parser = Parser(prog="benchmarks.ranges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="M", help="folder or hub repository (default: the embedded checkpoint)")
    parser.add_argument("--prompt", default="sudoku 1...............", metavar="P", help="of the one canvas")
    args = parser.parse_args(argv)
    print(table(Engine.load(args.model), args.prompt))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(None), "interrupted", ends_process=True))
