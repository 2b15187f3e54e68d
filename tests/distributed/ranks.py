"""Processes on this machine that run a test's code together, over MLX's ring backend; `mlx.launch` hides failures."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds


@dataclass
class Ended:
    """How a rank ended."""

    code: int | None
    out: str
    err: str


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def start_ranks(n: int, arguments: list[str], folder: Path, **environment: str) -> list[subprocess.Popen]:
    """Starts `python arguments…` n times, as ranks of one group."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(n)]))
    # OpenBLAS multiplies other numbers of rows otherwise
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**clean, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), **environment},
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(n)
    ]  # fmt: skip


def end_ranks(ranks: list[subprocess.Popen], timeout: float = TIMEOUT) -> list[Ended]:
    """Waits for all; those that are not done in time are killed, and have no exit code."""
    ended = []
    for rank in ranks:
        try:
            out, err = rank.communicate(timeout=timeout)
            ended.append(Ended(rank.returncode, out, err))
        except subprocess.TimeoutExpired:
            for other in ranks:
                other.kill()
            out, err = rank.communicate()
            ended.append(Ended(None, out, err))
    return ended


def run_ranks(n: int, arguments: list[str], folder: Path, **environment: str) -> list[Ended]:
    return end_ranks(start_ranks(n, arguments, folder, **environment))
