"""Canvas parallelism on loopback: whatever is written, by how many ranks, is what one process writes."""

import json

import pytest

from tests.distributed.ranks import run_ranks
from tests.seeing import write_seeing, write_tokenizer


@pytest.fixture(scope="module")
def seeing_checkpoint(tmp_path_factory):
    return write_tokenizer(write_seeing(tmp_path_factory.mktemp("seeing")))


@pytest.mark.parametrize(("n", "weights"), [(2, ""), (3, "3,1,2")])
def test_whole_generations_are_bit_for_bit_those_of_one_process(n, weights, seeing_checkpoint, tmp_path):
    ended = run_ranks(n, ["-m", "tests.distributed.whole", weights, str(seeing_checkpoint)], tmp_path)
    for rank, own in enumerate(ended):
        assert own.code == 0, f"rank {rank}: {own.err[-2000:]}"
        found = json.loads(own.out.splitlines()[-1])
        assert len(found) > 15 and all(found.values()), f"rank {rank}: {found}"
