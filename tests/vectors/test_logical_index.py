"""The logical index: what it finds is what one faiss index over the same codes finds, whatever tier rows lie in and whoever writes meanwhile."""

from __future__ import annotations

import gc
import mmap
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.vectors.trained import own, trained
from vectors import rebuild_policy
from vectors.absent_refine import Lease
from vectors.inverted_lists import StoredLists, build_lists, write_lists
from vectors.logical_index import LogicalIndex
from vectors.quantizer import EncodedRows, Quantizer
from vectors.tiers import Allowed

DIMENSION = 16


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@cache
def quantizer(metric: str) -> Quantizer:
    return trained(own(dimension=DIMENSION, metric=metric), vectors(2000), nlist=16)


@pytest.fixture(params=["cosine", "euclid"])
def index(request: pytest.FixtureRequest) -> LogicalIndex:
    return LogicalIndex(quantizer(request.param))


def segment_lists(index: LogicalIndex, encoded: EncodedRows) -> StoredLists:
    """A segment's lists as a node opens them."""
    rows = np.arange(len(encoded.codes))
    data = write_lists(build_lists(index.quantizer.nlist, encoded.list_numbers, encoded.codes, rows))
    return StoredLists(data, index.quantizer, rows, "test")


def bits(index: LogicalIndex, *numbers: np.ndarray) -> Allowed:
    flags = np.zeros(index.numbers.limit, np.bool_)
    for each in numbers:
        flags[each] = True
    return Allowed(np.packbits(flags, bitorder="little"))


def of(lease: Lease, rows: int) -> np.ndarray:
    return lease.numbers.start + np.arange(rows)


def found(index: LogicalIndex, queries: np.ndarray, allowed: Allowed, limit: int = 10, nprobe: int = 4) -> np.ndarray:
    return index.tiers.closest(queries, limit, 5 * limit, nprobe, allowed)[0]


def expected(index: LogicalIndex, matrix: np.ndarray, numbers: np.ndarray, queries: np.ndarray, limit: int = 10, nprobe: int = 4) -> np.ndarray:
    """What one index of all rows finds, its candidates compared again one by one."""
    whole = index.quantizer.new_index()
    whole.add(np.ascontiguousarray(matrix))
    candidates = whole.search(queries, 5 * limit, params=faiss.SearchParametersIVF(nprobe=nprobe))[1]
    scores = index.quantizer.refine_scores(queries, index.quantizer.encode(matrix).refine[candidates])
    order = np.argsort(scores if index.quantizer.metric == "euclid" else -scores, axis=1, kind="stable")[:, :limit]
    return numbers[np.take_along_axis(candidates, order, axis=1)]


@pytest.fixture(params=["whole", "two tiers"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How sealed rows are held after a rebuild."""
    if request.param == "two tiers":
        monkeypatch.setattr(rebuild_policy, "WHOLE_BYTES", 0)
    return request.param


def test_segments_coded_rows_and_a_tail_are_found_like_one_index_before_and_after_a_rebuild(index: LogicalIndex, held: str) -> None:
    matrix, queries = vectors(900, 1), vectors(40, 2)
    encoded = [index.quantizer.encode(matrix[start : start + 300]) for start in (0, 300, 600)]
    first, second = index.add_segment(300, segment_lists(index, encoded[0]), encoded[0].refine), index.add_rows(300, encoded[1])
    chunk = index.open_chunk(400)
    for start in range(0, 300, 70):
        chunk.append(EncodedRows(*(getattr(encoded[2], name)[start : start + 70] for name in ("list_numbers", "codes", "refine"))))
    numbers = np.concatenate([of(first, 300), of(second, 300), of(chunk.lease, 300)])
    np.testing.assert_array_equal(index.refine_codes(numbers), np.concatenate([each.refine for each in encoded]))
    wanted = expected(index, matrix, numbers, queries)
    assert index.tiers.big.rows == 0
    np.testing.assert_array_equal(found(index, queries, bits(index, numbers)), wanted)
    before = index.tiers
    index.rebuild()
    assert (index.tiers.big.rows, index.tiers.small.rows) == ((0, 900) if held == "whole" else (600, 300))
    np.testing.assert_array_equal(found(index, queries, bits(index, numbers)), wanted)
    assert before.small.rows == 900  # a snapshot that holds the old tiers still finds everything there


def test_a_batch_finds_what_single_queries_find(index: LogicalIndex) -> None:
    matrix, queries = vectors(500, 1), vectors(30, 2)
    lease = index.add_rows(500, index.quantizer.encode(matrix))
    allowed = bits(index, of(lease, 500))
    together = found(index, queries, allowed)
    np.testing.assert_array_equal(together, np.concatenate([found(index, queries[at : at + 1], allowed) for at in range(30)]))
    scores = index.tiers.closest(queries, 10, 50, 4, allowed)[1]
    ours = [index.quantizer.refine_scores(query[None], index.refine_codes(row)[None])[0] for query, row in zip(queries, together, strict=True)]
    np.testing.assert_allclose(scores, np.square(ours) if index.quantizer.metric == "euclid" else ours, rtol=1e-4, atol=1e-5)


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


def test_rows_whose_lease_is_gone_leave_at_the_next_rebuild_and_their_numbers_come_back(index: LogicalIndex, held: str) -> None:
    kept = index.add_rows(100, index.quantizer.encode(vectors(100, 1)))
    gone = index.add_rows(100, index.quantizer.encode(vectors(100, 2)))
    chunk = index.open_chunk(64)
    chunk.append(index.quantizer.encode(vectors(50, 3)))
    index.rebuild()
    assert index.tiers.big.rows + index.tiers.small.rows == 250
    limit = index.numbers.limit
    del gone, chunk
    gc.collect()
    index.rebuild()
    assert (index.tiers.big.rows, index.tiers.small.rows) == ((0, 100) if held == "whole" else (100, 0))
    gc.collect()
    index.numbers.allocate(1)
    assert index.numbers.limit < limit
    assert kept.numbers.start == 0


def test_rows_that_no_view_will_show_again_are_taken_out_and_older_tiers_keep_them(index: LogicalIndex, held: str) -> None:
    matrix = vectors(300, 1)
    lease = index.add_rows(300, index.quantizer.encode(matrix))
    numbers, gone = of(lease, 300), of(lease, 300)[::3]
    before = index.tiers
    index.rebuild(bits(index, gone).bits)
    assert index.tiers.rows == 200 and before.rows == 300
    everything = bits(index, numbers)
    left = found(index, matrix[:1], everything, limit=300, nprobe=16)[0]
    assert sorted(left[left >= 0]) == sorted(set(numbers) - set(gone))
    assert sorted(before.closest(matrix[:1], 300, 300, 16, everything)[0][0]) == sorted(numbers)
    assert not index.rebuild_due(100)  # they are out already


def test_searches_never_wait_for_a_rebuild_and_never_miss_or_double_a_row_while_others_come_and_go(index: LogicalIndex, held: str) -> None:
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
        deadline = time.monotonic() + 0.5
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
    assert index.tiers.big.rows + index.tiers.small.rows <= 400 + 7 * 50


def test_attached_segments_are_found_at_once_and_a_rebuild_puts_them_into_a_tier(index: LogicalIndex, held: str) -> None:
    matrix, queries = vectors(1000, 1), vectors(40, 2)
    encoded = [index.quantizer.encode(matrix[start : start + 300]) for start in (0, 300, 600)]
    leases: list[Lease] = []

    def check(rows: int) -> None:
        numbers = np.concatenate([of(lease, 300) for lease in leases])[:rows]
        np.testing.assert_array_equal(found(index, queries, bits(index, numbers)), expected(index, matrix[:rows], numbers, queries))

    for at, each in enumerate(encoded):
        leases.append(index.add_segment(300, segment_lists(index, each), each.refine, is_starting=True))
        check(300 * (at + 1))
    assert index.is_attached and index.rebuild_due() and index.tiers.small.rows == 0 and index.tiers.rows == 900
    assert sum(index.size_bytes.values()) == 900 * (index.quantizer.code_bytes + 8)
    leases.append(index.add_rows(100, index.quantizer.encode(matrix[900:])))
    check(1000)  # beside rows of a tier
    before = index.tiers
    index.rebuild()
    assert not index.is_attached and not index.rebuild_due() and index.tiers.rows == 1000
    assert (index.tiers.big.rows, index.tiers.small.rows) == ((0, 1000) if held == "whole" else (1000, 0))
    check(1000)
    assert before.rows == 1000  # a snapshot that holds the old tiers still finds everything there
    numbers = np.concatenate([of(lease, 300) for lease in leases])[:1000]
    np.testing.assert_array_equal(before.closest(queries, 10, 50, 4, bits(index, numbers))[0], expected(index, matrix, numbers, queries))


def test_a_segment_that_is_attached_during_a_rebuild_stays_so_until_the_next(index: LogicalIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, queries = vectors(600, 1), vectors(20, 2)
    encoded = [index.quantizer.encode(matrix[start : start + 300]) for start in (0, 300)]
    stored = [segment_lists(index, each) for each in encoded]
    leases = [index.add_segment(300, stored[0], encoded[0].refine, is_starting=True)]
    made = LogicalIndex._lists

    def lists(of_index: LogicalIndex, pieces: Iterable[object]) -> object:
        if len(leases) == 1:
            leases.append(index.add_segment(300, stored[1], encoded[1].refine, is_starting=True))
        return made(of_index, pieces)  # type: ignore[arg-type]

    monkeypatch.setattr(LogicalIndex, "_lists", lists)
    wanted = expected(index, matrix, np.arange(600) % 300 + np.repeat([leases[0].numbers.start, leases[0].numbers.stop], 300), queries)
    for rows in ((300, 300), (600, 0)):
        index.rebuild()
        assert (index.tiers.small.rows, sum(lists.rows for lists in index.tiers.attached)) == rows
        np.testing.assert_array_equal(found(index, queries, bits(index, *(of(lease, 300) for lease in leases))), wanted)


def test_attached_rows_whose_lease_is_gone_leave_at_the_rebuild(index: LogicalIndex) -> None:
    encoded = index.quantizer.encode(vectors(300, 1))
    kept, gone = (index.add_segment(300, segment_lists(index, encoded), encoded.refine, is_starting=True) for _ in range(2))
    del gone
    gc.collect()
    index.rebuild()
    assert index.tiers.rows == 300 and not index.is_attached and kept.numbers.start == 0


def test_readers_find_every_row_of_what_was_added_while_more_is_attached(index: LogicalIndex) -> None:
    matrix, queries = vectors(300, 1), vectors(8, 2)
    encoded = index.quantizer.encode(matrix)
    stored, stop = segment_lists(index, encoded), threading.Event()
    leases: list[Lease] = []
    sizes: set[int] = set()
    problems: list[str] = []

    def read() -> None:
        while not stop.is_set():
            if held := list(leases):
                hits = found(index, queries, bits(index, *[of(lease, 300) for lease in held]), limit=3000, nprobe=16)
                sizes.add(len(held))
                if not ((hits >= 0).sum(axis=1) == 300 * len(held)).all():
                    problems.append(f"{len(held)} segments")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(8):
        leases.append(index.add_segment(300, stored, encoded.refine, is_starting=True))
        deadline = time.monotonic() + 30
        while len(leases) not in sizes and time.monotonic() < deadline:
            time.sleep(0.001)
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == [] and sizes == set(range(1, 9))


def test_a_rebuild_is_due_by_shares_and_never_for_little() -> None:
    least, big = rebuild_policy.LEAST_ROWS, 10_000_000
    due = rebuild_policy.rebuild_due
    assert not due(0, 0, least - 1, 72) and due(0, 0, least, 72)
    assert not due(big, 2_000_000, 0, 72) and due(big, 2_500_000, 0, 72)
    assert not due(big, 0, 2_000_000, 72) and due(big, 0, 2_500_000, 72)
    assert not due(0, 3_000_000, 0, 72) and due(0, 4_000_000, 0, 72)  # all in the small tier: while they fit whole
    assert not rebuild_policy.fits_whole(4_000_000, 72) and rebuild_policy.fits_whole(3_700_000, 72)


class Later:
    """Refine codes that appear in a mapped file when somebody asks for them; rows in `asked`."""

    def __init__(self, file: mmap.mmap, codes: np.ndarray, offset: int = 0) -> None:
        self.file, self.codes = np.frombuffer(file, np.uint8, offset=offset).reshape(codes.shape), codes
        self.asked: set[int] = set()

    @property
    def is_whole(self) -> bool:
        return len(self.asked) == len(self.codes)

    def has(self, rows: np.ndarray) -> bool:
        return self.asked.issuperset(rows.tolist())

    def ask(self, rows: np.ndarray) -> Callable[[], None]:
        def wait() -> None:
            self.file[rows] = self.codes[rows]
            self.asked.update(rows.tolist())

        return wait

    def bring_all(self) -> None:
        self.ask(np.arange(len(self.codes)))()


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 33])
def test_a_search_finds_the_same_where_only_the_codes_of_its_candidates_are_there(index: LogicalIndex, tmp_path: Path, held: str, limit: int) -> None:
    matrix, queries = vectors(2000, 1), vectors(5, 2)
    encoded = [index.quantizer.encode(part) for part in (matrix[:1200], matrix[1200:])]
    whole = LogicalIndex(index.quantizer)
    leases, later = [], []
    for number, each in enumerate(encoded):
        path = tmp_path / str(number)
        path.write_bytes(bytes(each.refine.nbytes))
        with path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        later.append(Later(mapped, each.refine))
        leases.append((index.add_segment(len(each.refine), segment_lists(index, each), later[-1].file, source=later[-1]), len(each.refine)))
        whole.add_segment(len(each.refine), segment_lists(index, each), each.refine)
    index.rebuild()
    allowed = bits(index, *(of(lease, rows) for lease, rows in leases))
    for query in queries:
        for nprobe in (2, 16):
            numbers, distances = index.tiers.closest(query[None], limit, 50, nprobe, allowed)
            wanted_numbers, wanted = whole.tiers.closest(query[None], limit, 50, nprobe, allowed)
            np.testing.assert_array_equal(numbers, wanted_numbers)
            np.testing.assert_array_equal(distances, wanted)
    asked = sum(len(each.asked) for each in later)
    assert limit <= asked <= 2 * 5 * 50 and asked < 2000
    number = next(number for number in range(1200) if number not in later[0].asked)
    assert (index.refine_codes(leases[0][0].numbers.start + np.array([number])) == encoded[0].refine[number]).all()
    for each in later:
        each.bring_all()
    index.tiers.closest(queries, limit, 50, 4, allowed)
    assert not index._absent and all(lease.source is None for lease, _ in leases)


def test_refine_codes_that_cannot_be_mapped_are_there_before_they_are_copied(index: LogicalIndex) -> None:
    matrix = vectors(300, 1)
    encoded = index.quantizer.encode(matrix)
    later = Later(mmap.mmap(-1, encoded.refine.nbytes + 64), encoded.refine, offset=64)
    lease = index.add_segment(300, segment_lists(index, encoded), later.file, source=later)
    assert later.is_whole and lease.source is None and not lease.mapped
    np.testing.assert_array_equal(index.refine_codes(of(lease, 300)), encoded.refine)
