"""The fuzzer's own test, and its first seeds: more than 500 inputs, of which a few of each kind are tried always."""

import pytest

from tests.fuzz.kind import Failure, Kind, tried
from tests.fuzz.kinds import KINDS

FEW = 3  # inputs of each kind that are tried even in a hurry


def run_all(kind: Kind, seeds: range) -> None:
    failures = [found for seed in seeds if isinstance(found := tried(kind, seed), Failure)]
    assert not failures, "\n\n".join(map(str, failures))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_first_inputs(kind):
    run_all(kind, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_inputs(kind):
    run_all(kind, range(FEW, kind.count))
