"""Tensor parallelism on loopback: what ranks with a part of the weights each write is what one process writes."""

import json

import pytest

from tests.distributed.published import write_published
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"))


def ask(n, folders, tmp_path):
    """By rank, what each found to differ."""
    for rank, own in enumerate(run_ranks(n, ["-m", "tests.distributed.cut", *folders], tmp_path)):
        assert own.code == 0, f"rank {rank}: {own.err[-2000:]}"
        yield json.loads(own.out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_ranks_write_what_one_process_writes(n, published, tmp_path):
    for found in ask(n, map(str, published.values()), tmp_path):
        assert len(found) == 4 * len(published) and not any(found.values()), found


@pytest.mark.slow
def test_whatever_is_asked_of_the_embedded_checkpoint(tmp_path):
    for found in ask(2, [""], tmp_path):
        assert len(found) > 10 and not any(found.values()), found
