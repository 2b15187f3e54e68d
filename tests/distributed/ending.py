"""Run by each rank: writes together, until the last rank ends as the command line says; see `test_together`."""

import os
import signal
import sys

import mlx.core as mx

from mlx_dgemma import Engine, Request
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.distributed.plan import Plan
from mlx_dgemma.distributed.session import together
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.terminal.cli import exit_code

mx.set_default_device(mx.cpu)


def end(how: str) -> None:
    """At its third step."""
    if how == "dies":
        os._exit(3)
    if how == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "is interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    if how == "fails":
        raise DGemmaError("no more paper")


def run(how: str) -> int:
    with together(Plan()) as session:
        assert session is not None
        engine = Engine.load()
        session.attach(engine, None)
        print("began", flush=True)
        for step, event in enumerate(engine.stream(Request("count 1 to 99", seed=1)), 1):
            if step == 3 and session.rank == session.size - 1:
                if how == "closes":
                    break
                end(how)
            if isinstance(event, DenoisingStep):
                event.draft.tolist()
    return 0


sys.exit(exit_code(lambda: run(sys.argv[1]), "interrupted", ends_process=True))
