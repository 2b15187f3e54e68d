"""Settle and confirm: positions that have come to rest leave the computation until a full step has the last word.

A position has settled once it was accepted, with the same argmax as in the step before and next to no entropy. From
then on its keys, values, soft embedding, entropy and token stay as they were, and a step computes the other positions
only. When the stopping rule would end the canvas, or nothing is left to compute, one full step is made, exactly as if
nothing had settled; the canvas is committed only if the rule holds in that step too. If it does not, positions that
changed go on, their neighbours with them, and after some such failures the canvas goes on in full steps.

So what is committed is always what a full step of the published sampler would have committed from that canvas. Waiting
one step before a position settles is what makes this work (dKV-Cache, arXiv 2505.15781). No heavy imports here.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_dgemma.errors import DGemmaError


@dataclass(frozen=True)
class Settling:
    """When a position settles.

    Attributes:
        entropy: nats; it settles below this.
        steps: how many steps in a row it must have been calm.
        neighbours: how many positions to each side a position that a confirming step changed takes along.
        failures: confirming steps that may fail before a canvas goes on in full steps.
        start: share of the positions that a canvas begins with, for short answers; while its draft has no stop token
            there, they are doubled. The others are absent: nobody sees them, and a full step computes those that are
            present. 1 begins with all of them, as do canvases that are steered or whose text nothing ends.
        crop: share of the positions that stay in any case; those behind the text's end leave a canvas once its draft
            has a stop token and all behind it is certain: nobody sees them any more, and a full step computes the
            others. They come back as above. 1 keeps all. What stays behind the end seems to serve as scratch paper.
        walk_every: steps, of which only the first one scores all ids of the vocabulary for all positions; in between
            these are scored over their heaviest groups (see `diet`). Full steps score all. None: every step does. A
            cutoff of soft embeddings then has no effect; with alternatives, `walk_every` has none.
        groups: how many groups of 16 ids those are.

    Raises:
        DGemmaError: numbers that are none.
    """

    entropy: float = 1e-3
    steps: int = 1
    neighbours: int = 2
    failures: int = 2
    start: float = 1.0
    crop: float = 1.0
    walk_every: int | None = None
    groups: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.entropy, bool) or not isinstance(self.entropy, int | float) or not 0 < self.entropy < 1e9:
            raise DGemmaError(f"settling: entropy must be a number > 0 (nats), got {self.entropy!r}")
        for name in ("start", "crop"):
            share = vars(self)[name]
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise DGemmaError(f"settling: {name} must be a share of the canvas, > 0 and <= 1, got {share!r}")
        bounds = {"steps": 1, "neighbours": 0, "failures": 0, "walk_every": 1, "groups": 1}
        for name, least in bounds.items():
            value = vars(self)[name]
            if name == "walk_every" and value is None:
                continue
            if type(value) is not int or value < least:
                raise DGemmaError(f"settling: {name} must be an integer >= {least}, got {value!r}")


FAST = Settling(crop=0.5)  # what `fast` means; docs/experiments.md has the table that says so
