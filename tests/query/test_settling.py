"""Widening: an answer stands when twice as many lists bring nothing new, each query for itself."""

from __future__ import annotations

import numpy as np

from query.settling import FACTOR, MOST_CANDIDATES, settle

NLIST = 100


def looking(places: list[list[int]], seen: list[tuple[list[int], int]]) -> object:
    """A search whose query q has the hit i in list ``places[q][i]``: the sooner in the list of hits, the closer."""

    def look(some: np.ndarray, nprobe: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append((some.tolist(), nprobe))
        assert candidates == min(MOST_CANDIDATES, FACTOR ** (len(seen) - 1)), "candidates grow with the lists"
        numbers, distances = np.full((len(some), 2), -1), np.full((len(some), 2), np.inf, np.float32)
        for at, query in enumerate(some):
            within = [hit for hit, place in enumerate(places[query]) if place < nprobe][:2]
            numbers[at, : len(within)], distances[at, : len(within)] = within, within
        return numbers, distances

    return look


def test_each_query_widens_until_nothing_new_is_found() -> None:
    seen: list[tuple[list[int], int]] = []
    near, far, farther = [0, 1, 2], [30, 0, 1], [99, 60, 0, 1]
    found = settle(looking([near, far, farther], seen), 3, 8, NLIST)  # type: ignore[arg-type]
    assert found.numbers[0].tolist() == [0, 1] and found.nprobe[0] == 16
    assert seen[:2] == [([0, 1, 2], 8), ([0, 1, 2], 16)], "all look twice"
    # the second query's closest hit lies in list 30: 8 and 16 lists agree without it
    assert found.numbers[1].tolist() == [1, 2] and found.nprobe[1] == 16
    assert found.nprobe[2] == 16
    nearer = settle(looking([[12, 30, 0, 1], near], []), 2, 8, NLIST)  # type: ignore[arg-type]
    assert nearer.numbers.tolist() == [[0, 1], [0, 1]], "what came new at 16 and at 32 lists was followed"
    assert nearer.nprobe.tolist() == [64, 16]
    assert nearer.distances[0].tolist() == [0, 1]


def test_an_answer_with_too_few_hits_looks_everywhere_and_no_further() -> None:
    seen: list[tuple[list[int], int]] = []
    found = settle(looking([[0], [0, 99]], seen), 2, 30, NLIST)  # type: ignore[arg-type]
    assert found.numbers.tolist() == [[0, -1], [0, 1]] and found.nprobe.tolist() == [NLIST, NLIST]
    assert [nprobe for _, nprobe in seen] == [30, 60, 100]


def test_there_is_an_end_of_candidates() -> None:
    seen: list[tuple[list[int], int]] = []
    settle(looking([[99]], seen), 1, 1, NLIST)  # type: ignore[arg-type]
    assert [nprobe for _, nprobe in seen] == [1, 2, 4, 8, 16, 32, 64, 100] and FACTOR ** (len(seen) - 1) > MOST_CANDIDATES


def test_who_begins_with_all_lists_looks_once() -> None:
    seen: list[tuple[list[int], int]] = []
    settle(looking([[0, 1]], seen), 1, NLIST, NLIST)  # type: ignore[arg-type]
    assert seen == [([0], NLIST)]
