"""The logical index: what it finds is what one faiss index over the same codes finds, whatever tier rows lie in and whoever writes meanwhile."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import faiss
import numpy as np
import pytest

from tests.vectors.trained import own, trained
from vectors.inverted_lists import build_lists, read_lists, write_lists
from vectors.logical_index import Lease, LogicalIndex
from vectors.quantizer import EncodedRows
from vectors.tiers import Allowed

DIMENSION = 16


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(params=["cosine", "euclid"])
def index(request: pytest.FixtureRequest) -> LogicalIndex:
    return LogicalIndex(trained(own(dimension=DIMENSION, metric=request.param), vectors(2000), nlist=16))


def segment_lists(index: LogicalIndex, encoded: EncodedRows) -> tuple[np.ndarray, Callable[[], object]]:
    """A segment's lists as a node opens them: sizes, and fresh copies on demand."""

    rows = np.arange(len(encoded.codes))
    data = write_lists(build_lists(index.quantizer.nlist, encoded.list_numbers, encoded.codes, rows))

    def fresh() -> object:
        return read_lists(data, index.quantizer, rows, "test")

    return np.bincount(encoded.list_numbers, minlength=index.quantizer.nlist), fresh


def bits(index: LogicalIndex, *numbers: np.ndarray) -> Allowed:
    flags = np.zeros(index.numbers.limit, np.bool_)
    for each in numbers:
        flags[each] = True
    return Allowed(np.packbits(flags, bitorder="little"))


def of(lease: Lease, rows: int) -> np.ndarray:
    return lease.numbers.start + np.arange(rows)


def found(index: LogicalIndex, queries: np.ndarray, allowed: Allowed, limit: int = 10, nprobe: int = 4) -> np.ndarray:
    lists, distances = index.assign(queries, nprobe)
    return index.tiers.closest(queries, limit, lists, distances, allowed)[0]


def expected(index: LogicalIndex, matrix: np.ndarray, numbers: np.ndarray, queries: np.ndarray, limit: int = 10, nprobe: int = 4) -> np.ndarray:
    whole = index.quantizer.new_index()
    whole.add_with_ids(np.ascontiguousarray(matrix), np.ascontiguousarray(numbers))
    return whole.search(queries, limit, params=faiss.SearchParametersIVF(nprobe=nprobe))[1]


def test_segments_coded_rows_and_a_tail_are_found_like_one_index_before_and_after_a_rebuild(index: LogicalIndex) -> None:
    matrix, queries = vectors(900, 1), vectors(40, 2)
    encoded = [index.quantizer.encode(matrix[start : start + 300]) for start in (0, 300, 600)]
    sizes, fresh = segment_lists(index, encoded[0])
    first, second = index.add_segment(300, sizes, fresh), index.add_rows(300, encoded[1])
    chunk = index.open_chunk(400)
    for start in range(0, 300, 70):
        chunk.append(EncodedRows(*(getattr(encoded[2], name)[start : start + 70] for name in ("list_numbers", "codes", "refine"))))
    np.testing.assert_array_equal(chunk.refine[: chunk.rows], encoded[2].refine)
    numbers = np.concatenate([of(first, 300), of(second, 300), of(chunk.lease, 300)])
    wanted = expected(index, matrix, numbers, queries)
    assert index.tiers.big.rows == 0
    np.testing.assert_array_equal(found(index, queries, bits(index, numbers)), wanted)
    before = index.tiers
    index.rebuild()
    assert (index.tiers.big.rows, index.tiers.small.rows) == (600, 300)
    np.testing.assert_array_equal(found(index, queries, bits(index, numbers)), wanted)
    assert before.small.rows == 900  # a snapshot that holds the old tiers still finds everything there


def test_a_batch_finds_what_single_queries_find_and_counts_the_codes_in_the_lists(index: LogicalIndex) -> None:
    matrix, queries = vectors(500, 1), vectors(30, 2)
    lease = index.add_rows(500, index.quantizer.encode(matrix))
    allowed = bits(index, of(lease, 500))
    together = found(index, queries, allowed)
    np.testing.assert_array_equal(together, np.concatenate([found(index, queries[at : at + 1], allowed) for at in range(30)]))
    lists, distances = index.assign(queries, index.quantizer.nlist)
    assert index.tiers.closest(queries, 10, lists, distances, allowed)[1].tolist() == [500] * 30


def test_only_allowed_numbers_are_found(index: LogicalIndex) -> None:
    matrix, queries = vectors(600, 1), vectors(20, 2)
    lease = index.add_rows(600, index.quantizer.encode(matrix))
    some = of(lease, 600)[::7]
    hits = found(index, queries, bits(index, some), limit=100, nprobe=16)
    assert set(hits[hits >= 0]) <= set(some)
    assert ((hits >= 0).sum(axis=1) == len(some)).all()


def test_rows_without_a_vector_have_a_number_and_are_never_found(index: LogicalIndex) -> None:
    matrix = vectors(40, 1)
    places = np.arange(0, 80, 2, dtype=np.int64)
    lease = index.add_rows(80, index.quantizer.encode(matrix), places)
    chunk = index.open_chunk(40)
    encoded = index.quantizer.encode(matrix)
    chunk.append(EncodedRows(np.where(np.arange(40) % 4 == 0, -1, encoded.list_numbers), encoded.codes, encoded.refine))
    everything = bits(index, np.arange(index.numbers.limit))
    for _ in range(2):
        hits = found(index, matrix[:1], everything, limit=120, nprobe=16)[0]
        wanted = [*(lease.numbers.start + places), *(chunk.lease.numbers.start + at for at in range(40) if at % 4)]
        assert sorted(hits[hits >= 0]) == sorted(wanted)
        index.rebuild()


def test_rows_whose_lease_is_gone_leave_at_the_next_rebuild_and_their_numbers_come_back(index: LogicalIndex) -> None:
    kept = index.add_rows(100, index.quantizer.encode(vectors(100, 1)))
    gone = index.add_rows(100, index.quantizer.encode(vectors(100, 2)))
    chunk = index.open_chunk(64)
    chunk.append(index.quantizer.encode(vectors(50, 3)))
    index.rebuild()
    assert index.tiers.big.rows == 200
    limit = index.numbers.limit
    del gone, chunk
    gc.collect()
    index.rebuild()
    assert (index.tiers.big.rows, index.tiers.small.rows) == (100, 0)
    gc.collect()
    index.numbers.allocate(1)
    assert index.numbers.limit < limit
    assert kept.numbers.start == 0


def test_searches_never_wait_for_a_rebuild_and_never_miss_or_double_a_row_while_others_come_and_go(index: LogicalIndex) -> None:
    matrix, queries = vectors(400, 1), vectors(8, 2)
    stable = index.add_rows(400, index.quantizer.encode(matrix))
    wanted = expected(index, matrix, of(stable, 400), queries)
    problems: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            hits = found(index, queries, bits(index, of(stable, 400)))
            if not np.array_equal(hits, wanted):
                problems.append("another answer")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        held: list[Lease] = []
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            held.append(index.add_rows(50, index.quantizer.encode(vectors(50, len(held)))))
            chunk = index.open_chunk(32)
            chunk.append(index.quantizer.encode(vectors(20, 7)))
            held = held[-5:]
            index.rebuild()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert problems == []
    assert index.tiers.big.rows <= 400 + 6 * 50


def test_a_rebuild_is_due_by_shares_and_never_for_little() -> None:
    from vectors.rebuild_policy import LEAST_ROWS, rebuild_due

    assert not rebuild_due(0, LEAST_ROWS - 1, LEAST_ROWS - 1)
    assert rebuild_due(0, LEAST_ROWS, 0) and rebuild_due(0, 0, LEAST_ROWS)
    assert not rebuild_due(10_000_000, 2_000_000, 0) and rebuild_due(10_000_000, 2_500_000, 0)
    assert not rebuild_due(10_000_000, 0, 2_000_000) and rebuild_due(10_000_000, 0, 2_500_000)
