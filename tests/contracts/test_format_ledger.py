"""The ledger: no verdict changes when runs are joined, stored and read."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import CorruptError
from contracts.ledger import VERDICTS, LedgerRun, decode_ledger, encode_ledger, merge_runs, untiled
from tests.examples import examples

verdicts = st.tuples(st.sampled_from(["row", "reject", "delete"]), st.sampled_from([None, "empty"]), st.booleans())
offsets = st.lists(st.lists(verdicts, max_size=4), max_size=12)  # per media offset, the verdict of each of its items


def single_runs(plan: list[list[tuple[str, str | None, bool]]], first: int = 100) -> list[LedgerRun]:
    return [
        LedgerRun(first + offset, first + offset + 1, item, item + 1, *verdict) for offset, row in enumerate(plan) for item, verdict in enumerate(row)
    ]


def expand(runs: list[LedgerRun]) -> dict[tuple[int, int], tuple[str, str | None, bool]]:
    out: dict[tuple[int, int], tuple[str, str | None, bool]] = {}
    for run in runs:
        for offset in range(run.start_offset, run.next_offset):
            for item in range(run.start_item, run.next_item):
                assert (offset, item) not in out, "two runs cover one item"
                out[offset, item] = (run.verdict, run.reason, run.partial)
    return out


@given(offsets)
def test_joining_runs_keeps_the_verdict_of_every_item(plan: list[list[tuple[str, str | None, bool]]]) -> None:
    runs = single_runs(plan)
    merged = merge_runs(runs)
    assert expand(merged) == expand(runs) and len(merged) <= len(runs)
    assert sum(run.items for run in merged) == sum(run.items for run in runs) == len(expand(runs))


@given(offsets, st.integers(0, 12))
def test_joining_what_was_joined_in_pieces_keeps_every_verdict(plan: list[list[tuple[str, str | None, bool]]], cut: int) -> None:
    runs = single_runs(plan)
    pieces = merge_runs([run for run in runs if run.start_offset < 100 + cut]) + merge_runs([run for run in runs if run.start_offset >= 100 + cut])
    assert expand(merge_runs(pieces)) == expand(runs)
    assert merge_runs(merge_runs(runs)) == merge_runs(runs)


def test_a_million_plain_rows_are_one_run() -> None:
    assert merge_runs(LedgerRun(n, n + 1, 0, 1, "row") for n in range(10_000)) == [LedgerRun(0, 10_000, 0, 1, "row")]


@settings(max_examples=examples(50), deadline=None)
@given(offsets)
def test_runs_come_back_from_the_bytes(plan: list[list[tuple[str, str | None, bool]]]) -> None:
    runs = merge_runs(single_runs(plan))
    assert decode_ledger(encode_ledger(runs), "here") == runs


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_can_be_stored(verdict: str) -> None:
    run = LedgerRun(0, 1, 0, 1, verdict)
    assert decode_ledger(memoryview(encode_ledger([run])), "here") == [run]


@pytest.mark.parametrize(
    "run", [LedgerRun(0, 1, 0, 1, "fine"), LedgerRun(5, 5, 0, 1, "row"), LedgerRun(5, 4, 0, 1, "row"), LedgerRun(0, 1, 2, 1, "row")]
)
def test_an_impossible_run_is_corrupt(run: LedgerRun) -> None:
    with pytest.raises(CorruptError):
        decode_ledger(encode_ledger([run]), "here")


def test_an_arrow_file_with_other_columns_is_another_format() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"start_offset": pa.array([1], pa.int64())})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(CorruptError) as caught:
        decode_ledger(sink.getvalue().to_pybytes(), "here")
    assert caught.value.error_code == "unknown_format"


@given(st.binary(max_size=100))
def test_random_bytes_are_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_ledger(data, "here")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=10), st.integers(0, 30), st.integers(0, 10))
def test_untiled_names_exactly_the_offsets_that_no_run_covers(spans: list[tuple[int, int]], start: int, length: int) -> None:
    runs = [LedgerRun(at, at + size, 0, 1, "row") for at, size in spans]
    covered = {offset for run in runs for offset in range(run.start_offset, run.next_offset)}
    missing = untiled(runs, start, start + length)
    assert [offset for begin, end in missing for offset in range(begin, end)] == [o for o in range(start, start + length) if o not in covered]
    assert all(begin < end for begin, end in missing)
