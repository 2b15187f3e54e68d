"""Limits that several hold at a time, interleaved in any order."""

from hypothesis import given
from hypothesis import strategies as st

from mlx_dgemma.model.limits import SharedLimit


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 100)), max_size=30))
def test_the_highest_while_held_and_what_it_was_afterwards(moves):
    limits = [7]
    shared, holders = SharedLimit(lambda n: (limits.append(n), limits[-2])[1]), {}
    for who, nbytes in moves:
        if who in holders:
            holders.pop(who)[0].__exit__(None, None, None)
        else:
            holder = shared.held(nbytes)
            holder.__enter__()
            holders[who] = holder, nbytes
        assert limits[-1] == max((n for _, n in holders.values()), default=7)
    for holder, _ in holders.values():
        holder.__exit__(None, None, None)
    assert limits[-1] == 7
