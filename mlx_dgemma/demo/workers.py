"""Several processes that take the same steps of a training, each with batches of its own."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as workers
from torch import nn


@contextmanager
def followers(count: int, follow: Callable[[int], object]) -> Iterator[None]:
    """Meanwhile `count` − 1 other processes run `follow(rank)`, a callable that can be pickled; this one has rank 0."""
    if count == 1:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting, spawn = f"file://{folder}/meeting", multiprocessing.get_context("spawn")
        for rank in range(1, count):
            spawn.Process(target=_join, args=(meeting, count, rank, follow), daemon=True).start()
        workers.init_process_group("gloo", meeting, world_size=count, rank=0)
        try:
            yield
        finally:
            workers.destroy_process_group()


def _join(meeting: str, count: int, rank: int, follow: Callable[[int], object]) -> None:
    workers.init_process_group("gloo", meeting, world_size=count, rank=rank)
    follow(rank)


def average(model: nn.Module, done: float) -> float:
    """Makes gradients their mean over all processes. Returns how much of the training is done, by the first's clock."""
    if not workers.is_initialized():
        return done
    parameters = list(model.parameters())
    given = torch.tensor([float(p.grad is not None) for p in parameters])
    clock = torch.tensor([done if workers.get_rank() == 0 else 0.0])
    flat = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
    everything = torch.cat([clock, given, *flat])
    workers.all_reduce(everything)
    counts, rest = everything[1 : len(parameters) + 1], everything[len(parameters) + 1 :] / workers.get_world_size()
    for p, count, own in zip(parameters, counts, rest.split([p.numel() for p in parameters]), strict=True):
        p.grad = own.view_as(p) if count else None  # eyes, where nobody was shown anything
    return float(everything[0])
