"""How sure the model was of each token it wrote: probability and entropy (nats) when its canvas settled."""

import math
import sys

from mlx_dgemma import Engine, Request
from mlx_dgemma.diffusion.events import DenoisingStep

engine, last = Engine.load(), None
for event in engine.stream(Request(sys.argv[1] if len(sys.argv) > 1 else "sudoku 1..4..1.2....3.1", seed=1)):
    if isinstance(event, DenoisingStep):
        last = event  # of the canvas that is being denoised
        continue
    log_p, entropy = last.log_p[0].tolist(), last.entropy[0].tolist()  # (C,), of its tempered distribution
    for token, p, nats in zip(event.tokens, log_p, entropy, strict=False):
        print(f"{engine.tokenizer.decode([token])!r:8} {math.exp(p):7.2%} {nats:.4f}")
