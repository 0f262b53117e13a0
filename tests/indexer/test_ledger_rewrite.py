"""Dropped rows in a ledger: the runs say for each item what a plain map of items says, and still tile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import CorruptError
from contracts.ledger import LedgerRun, decode_ledger, encode_ledger, merge_runs, untiled
from indexer.ledger_rewrite import without_rows
from tests.examples import examples

records = st.lists(st.lists(st.sampled_from(["row", "row", "row", "delete", "reject", "superseded"]), max_size=4), min_size=1, max_size=25)


def runs_of(records: list[list[str]], start: int = 100) -> list[LedgerRun]:
    """Runs of records of a few items each; a record without items is a gap."""
    runs: list[LedgerRun] = []
    for offset, items in enumerate(records, start):
        if not items:
            runs.append(LedgerRun(offset, offset + 1, 0, 0, "gap"))
        runs += [LedgerRun(offset, offset + 1, item, item + 1, verdict) for item, verdict in enumerate(items)]
    return merge_runs(runs)


def by_item(runs: list[LedgerRun]) -> dict[tuple[int, int], str]:
    return {(o, i): run.verdict for run in runs for o in range(run.start_offset, run.next_offset) for i in range(run.start_item, run.next_item)}


@settings(deadline=None, max_examples=examples(200))
@given(records, st.data())
def test_each_dropped_row_has_its_new_verdict_and_nothing_else_changes(records: list[list[str]], data: st.DataObject) -> None:
    runs = runs_of(records)
    before = by_item(runs)
    rows = sorted(place for place, verdict in before.items() if verdict == "row")
    chosen = data.draw(st.dictionaries(st.sampled_from(rows), st.sampled_from(["superseded", "deleted", "expired"]))) if rows else {}
    after = without_rows(runs, chosen, "here")
    assert by_item(after) == before | chosen
    assert untiled(after, 100, 100 + len(records)) == [] and sum(run.items for run in after) == len(before)
    order = [(run.start_offset, run.start_item) for run in after]
    assert order == sorted(order) and after == merge_runs(after) and decode_ledger(encode_ledger(after), "here") == after


@pytest.mark.parametrize("place", [(100, 1), (101, 0), (99, 0)])
def test_a_stored_row_that_the_ledger_does_not_know_as_a_row_is_corrupt(place: tuple[int, int]) -> None:
    with pytest.raises(CorruptError):
        without_rows([LedgerRun(100, 101, 0, 1, "row"), LedgerRun(101, 102, 0, 1, "delete")], {place: "superseded"}, "here")


def test_a_partial_row_keeps_its_reason_when_it_is_dropped() -> None:
    run = LedgerRun(5, 6, 0, 1, "row", "decode_failed", True)
    assert without_rows([run], {(5, 0): "deleted"}, "here") == [LedgerRun(5, 6, 0, 1, "deleted", "decode_failed", True)]
