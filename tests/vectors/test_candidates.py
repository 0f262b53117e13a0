"""Rows are copied together out of many arrays, and the best of them are chosen as a sort would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectors.candidates import address_of, closest_of, gather


@pytest.mark.parametrize("width", [1, 7, 64, 384])
def test_rows_of_many_arrays_are_copied_together_in_the_order_of_their_addresses(width: int) -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (rows, width), dtype=np.uint8) for rows in (3, 50, 1)]
    picks = [(int(which), int(random.integers(len(arrays[which])))) for which in random.integers(0, 3, 40)]
    addresses = np.array([address_of(arrays[which]) + row * width for which, row in picks], np.int64)
    np.testing.assert_array_equal(gather(addresses, width), np.stack([arrays[which][row] for which, row in picks]))


def test_rows_that_do_not_lie_behind_each_other_have_no_address() -> None:
    with pytest.raises(ValueError, match="row behind row"):
        address_of(np.zeros((4, 8), np.uint8)[:, ::2])


@given(scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=80), limit=st.integers(1, 20), higher=st.booleans())
def test_the_best_are_those_of_a_stable_sort(scores: list[float], limit: int, higher: bool) -> None:
    wanted = sorted(range(len(scores)), key=lambda at: -scores[at] if higher else scores[at])[:limit]
    assert closest_of(np.array(scores, np.float32), limit, higher).tolist() == wanted
