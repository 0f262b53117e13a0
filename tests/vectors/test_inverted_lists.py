"""The section of inverted lists: it comes back, as faiss itself writes it, and damage of every kind is found before faiss sees it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import CorruptError
from tests.examples import examples
from tests.vectors.coded import opened, sample
from vectors import flat
from vectors.inverted_lists import build_lists, read_lists, unpack_lists, write_lists
from vectors.nearest_rows import NearestRows
from vectors.recall import REFINE_FACTOR, encode_measured, measure_encoded

QUANTIZER = opened()
HEAD = 32


def lists_of(numbers: list[int], ids: list[int]) -> bytes:
    codes = np.random.default_rng(1).integers(0, 256, (len(ids), 2)).astype(np.uint8)
    return write_lists(build_lists(12, np.array(numbers, np.int64), codes, np.array(ids, np.int64)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 11), max_size=60), st.data())
def test_lists_come_back_and_move_into_another_index(numbers: list[int], data: st.DataObject) -> None:
    ids = sorted(data.draw(st.sets(st.integers(0, 2**32 - 1), min_size=len(numbers), max_size=len(numbers))))
    written = lists_of(numbers, ids)
    index = read_lists(written, QUANTIZER, np.array(ids, np.uint32), "here")
    assert index.ntotal == len(ids) and write_lists(index.invlists) == written
    assert [index.invlists.list_size(n) for n in range(12)] == [numbers.count(n) for n in range(12)]
    other = QUANTIZER.new_index()
    other.merge_from(index, 0)
    assert other.ntotal == len(ids) and write_lists(other.invlists) == written
    assert lists_of(numbers, ids) == written


@settings(deadline=None)
@given(st.lists(st.integers(0, 11), max_size=60), st.data())
def test_numbers_and_codes_come_back_in_the_order_of_the_ids(numbers: list[int], data: st.DataObject) -> None:
    ids = sorted(data.draw(st.sets(st.integers(0, 2**32 - 1), min_size=len(numbers), max_size=len(numbers))))
    codes = np.random.default_rng(1).integers(0, 256, (len(ids), 2)).astype(np.uint8)
    found_numbers, found_codes = unpack_lists(lists_of(numbers, ids), QUANTIZER, np.array(ids, np.uint32), "here")
    assert found_numbers.tolist() == numbers and (found_codes == codes).all()
    with pytest.raises(CorruptError):
        unpack_lists(lists_of(numbers, ids), QUANTIZER, np.array([*ids, 2**32], np.int64), "here")


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclid"])
@pytest.mark.parametrize("count", [0, 1, 2, 600])
def test_rows_that_are_coded_already_are_measured_as_well_as_when_they_were(metric: str, count: int) -> None:
    quantizer = opened(metric)
    rows = sample(count, 16, metric) if count else np.zeros((0, 16), np.float32)
    first = encode_measured(quantizer, rows, np.arange(count))
    again = measure_encoded(quantizer, first.encoded, np.arange(count))
    assert write_lists(again.lists) == write_lists(first.lists) and again.statistics.keys() == first.statistics.keys()
    for name, value in first.statistics.items():
        if name == "recall":
            step = max(0.05, 1 / first.statistics["recall_queries"])  # a query's own list may be another by its refine code
            assert all(abs(again.statistics[name][nprobe] - found) <= step for nprobe, found in value.items())
        else:
            assert again.statistics[name] == pytest.approx(value, rel=0.05)


GOLDEN = {
    "full": "696c61720c00000000000000020000000000000066756c6c0c00000000000000" + "0100000000000000" * 12,
    "sprs": "696c61720c00000000000000020000000000000073707273020000000000000003000000000000000100000000000000",
}


@pytest.mark.parametrize(("kind", "numbers"), [("full", list(range(12))), ("sprs", [3])])
def test_the_head_is_what_the_format_page_says(kind: str, numbers: list[int]) -> None:
    written = lists_of(numbers, list(range(len(numbers))))
    head = bytes.fromhex(GOLDEN[kind])
    assert written[: len(head)] == head and len(written) == len(head) + 10 * len(numbers)
    assert written[len(head) + 2 : len(head) + 10] == bytes(8)  # the first id, behind its code


def changed(at: int, layout: str, value: object, numbers: list[int] | None = None) -> bytes:
    numbers = list(range(12)) if numbers is None else numbers
    data = bytearray(lists_of(numbers, list(range(len(numbers)))))
    struct.pack_into(layout, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(("data", "count"), [
    (b"", 0), (b"ilar", 0), (lists_of([0], [0])[:-1], 1), (lists_of([0], [0]) + b"\0", 1), (lists_of([0], [1]), 1), (lists_of([0, 0], [0, 0]), 2),
    (lists_of([0], [0]), 2), (lists_of([0, 1], [0, 1]), 1), (lists_of([0], [2**32]), 1),
    (changed(0, "4s", b"ilpn"), 12), (changed(4, "<Q", 13), 12), (changed(4, "<Q", 2**63), 12), (changed(12, "<Q", 3), 12),
    (changed(12, "<Q", 0), 12), (changed(20, "4s", b"sprs"), 12),
    (changed(20, "4s", b"half"), 12), (changed(24, "<Q", 11), 12), (changed(24, "<Q", 2**61), 12),
    (changed(24, "<Q", 2**64 - 1), 12), (changed(HEAD, "<Q", 2), 12), (changed(HEAD, "<Q", 2**64 - 1), 12), (changed(HEAD, "<Q", 2**60), 12),
    (changed(HEAD, "<Q", 12, [3]), 1), (changed(HEAD, "<Q", 2**63, [3]), 1), (changed(24, "<Q", 1, [3]), 1), (changed(24, "<Q", 24, [3]), 1),
    (changed(HEAD + 16, "<Q", 3, [3, 5]), 2), (changed(HEAD + 16, "<Q", 2, [3, 5]), 2), (changed(HEAD + 8, "<Q", 0, [3]), 1),
])  # fmt: skip
def test_lists_whose_sizes_or_ids_disagree_are_corrupt(data: bytes, count: int) -> None:
    with pytest.raises(CorruptError):
        read_lists(data, QUANTIZER, np.arange(count, dtype=np.uint32), "here")


@settings(deadline=None, max_examples=examples(300))
@given(st.data())
def test_a_changed_byte_is_found_unless_it_is_a_codes(data: st.DataObject) -> None:
    original = lists_of([2, 2, 7, 9], [0, 1, 2, 3])
    at = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        index = read_lists(bytes(damaged), QUANTIZER, np.arange(4, dtype=np.uint32), "here")
    except CorruptError:
        return
    again = write_lists(index.invlists)
    assert again == bytes(damaged) and len(again) == len(original)  # another code, or another list: the sha256 finds those


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclid"])
def test_a_segments_recall_rises_with_nprobe_up_to_that_of_its_refine_store(metric: str) -> None:
    quantizer = opened(metric)
    rows = sample(1500, 16, metric, seed=12).astype(np.float16)
    ids = np.arange(1500) * 2  # half of the rows have no vector
    found = encode_measured(quantizer, rows, ids).statistics
    recall = {int(nprobe): value for nprobe, value in found["recall"].items()}
    assert list(recall) == [1, 2, 4, 8, 12] and list(recall.values()) == sorted(recall.values())
    assert recall[12] > 0.9 and recall[1] < recall[12] <= 1
    assert 0.5 < found["quantization_error_ratio"] < 1.5 and found["imbalance"] >= 1 and found["recall_queries"] == 200
    assert found["refine_factor"] == REFINE_FACTOR


def test_rows_unlike_the_sample_have_a_larger_error() -> None:
    quantizer = opened("euclid")
    far = (3 * sample(500, 16, "euclid", seed=3)[:, ::-1]).copy()
    found = encode_measured(quantizer, far, np.arange(500)).statistics
    assert found["quantization_error_ratio"] > 3


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_segments_of_few_rows_have_statistics_too(count: int) -> None:
    quantizer = opened()
    rows = sample(count, 16, "cosine") if count else np.zeros((0, 16), np.float32)
    found = encode_measured(quantizer, rows, np.arange(count)).statistics
    assert ("imbalance" in found) == (count > 0) and ("recall" in found) == (count > 1)
    assert count < 2 or found["recall"]["12"] == 1.0


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclid"])
@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
def test_nearest_rows_found_block_by_block_are_those_of_exact_search(metric: str, block_rows: int) -> None:
    rows, queries = sample(400, 16, metric, seed=1), sample(9, 16, metric, seed=2)
    nearest = NearestRows(queries, 11, metric)  # type: ignore[arg-type]
    for start in np.random.default_rng(3).permutation(np.arange(0, 400, block_rows)).tolist():  # threads come in any order
        nearest.add(start, rows[start : start + block_rows])
    exact = [flat.search(query, rows, metric, 11).rows for query in queries]  # type: ignore[arg-type]
    assert nearest.rows().tolist() == [found.tolist() for found in exact]
