"""Row numbers against a model: no number has two owners, and what nobody holds is given out again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vectors.row_numbers import ALIGNMENT, NumberRange, RowNumbers


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=60))
def test_held_ranges_never_overlap_and_let_go_numbers_come_back(steps: list[tuple[bool, int]]) -> None:
    numbers = RowNumbers()
    held: list[NumberRange] = []
    for takes, size in steps:
        if takes or not held:
            held.append(numbers.allocate(size))
            assert held[-1].capacity >= size and held[-1].start % ALIGNMENT == held[-1].capacity % ALIGNMENT == 0
        else:
            held.pop(size % len(held))
        taken = sorted((each.start, each.stop) for each in held)
        assert all(stop <= start for (_, stop), (start, _) in zip(taken, taken[1:], strict=False))
        assert all(stop <= numbers.limit for _, stop in taken)
    held.clear()
    assert numbers.allocate(1).start == 0 and numbers.limit == ALIGNMENT


def test_freed_neighbours_become_one_range() -> None:
    numbers = RowNumbers()
    first, second, third = (numbers.allocate(16) for _ in range(3))
    starts = (first.start, third.start)
    del first, second
    assert numbers.allocate(32).start == starts[0]
    assert third.start == starts[1]
