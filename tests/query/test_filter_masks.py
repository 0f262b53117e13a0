"""Filters on rows: with an index, without one, on sliced batches: the answer of a plain evaluator; estimates hold the count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from query import filter_index, postings
from query.filter_estimate import Estimate, all_of, any_of, at_least
from query.filter_masks import apply_filter, estimate_filter
from query.filters import parse_filter
from tests.examples import examples
from tests.query.filter_rows import CONDITIONS, FILTERS, ROWS, SCHEMA, make_batch, make_part, passes

MANY = settings(max_examples=examples(400), deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _index_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_index, "INDEX_FROM_ROWS", 0)
    monkeypatch.setattr(filter_index, "MAX_BYTES_PER_ROW", 1 << 20)


def _check(rows: list[dict[str, Any]], raw: dict[str, Any], live: list[bool], cut: int) -> None:
    batch = make_batch(rows)
    chosen = parse_filter(raw, SCHEMA)
    eligible = np.array((live * len(rows))[: len(rows)], np.bool_)
    passing = np.array([passes(row, f"id{at}", raw) for at, row in enumerate(rows)], np.bool_)
    cut = min(cut, len(rows))
    junk = make_batch(rows[:1] * 3)
    sliced = pa.concat_batches([junk, batch.slice(0, cut)]).slice(3)
    for part in (
        make_part([batch], eligible, indexed=True),
        make_part([batch], eligible, indexed=False),
        make_part([sliced, batch.slice(cut)], eligible, indexed=False),
    ):
        assert apply_filter(chosen, part, eligible).tolist() == (passing & eligible).tolist(), part.filter_index
        estimate = estimate_filter(chosen, part)
        assert estimate.lower <= np.count_nonzero(passing) <= estimate.upper
        assert estimate.lower <= estimate.expected <= estimate.upper
        found = int(np.count_nonzero(passing & eligible))
        among = estimate.among(int(np.count_nonzero(eligible)), len(rows))
        assert among.lower <= found <= among.upper and among.lower <= among.expected <= among.upper


@MANY
@given(st.lists(ROWS, max_size=12), FILTERS, st.lists(st.booleans(), min_size=1, max_size=5), st.integers(0, 12))
def test_every_filter_is_what_a_plain_evaluator_says(rows: list[dict[str, Any]], raw: dict[str, Any], live: list[bool], cut: int) -> None:
    _check(rows, raw, live, cut)


@MANY
@given(st.lists(ROWS, min_size=4, max_size=12), CONDITIONS, st.integers(0, 12))
def test_every_condition_alone_is_what_a_plain_evaluator_says(rows: list[dict[str, Any]], raw: dict[str, Any], cut: int) -> None:
    _check(rows, {"must": raw}, [True], cut)


@MANY
@given(st.lists(ROWS, min_size=4, max_size=12), CONDITIONS, st.integers(0, 12))
def test_bitmaps_give_what_rows_give(rows: list[dict[str, Any]], raw: dict[str, Any], cut: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postings, "BITMAP_SHARE", 0)  # no value is frequent: every other test here has bitmaps for all
        _check(rows, {"must_not": [raw]}, [True, True, False], cut)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=20), st.integers(0, 5))
def test_combined_estimates_hold_what_sets_do(rows: list[list[bool]], count: int) -> None:
    table = np.array(rows, np.bool_).reshape(-1, 4)
    exact = [Estimate.exact(int(hits)) for hits in table.sum(axis=0)]
    hits = table.sum(axis=1)
    for found, wanted in (
        (all_of(exact, len(rows)), hits == 4),
        (any_of(exact, len(rows)), hits > 0),
        (at_least(count, exact, len(rows)), hits >= count),
    ):
        assert found.lower <= int(wanted.sum()) <= found.upper and found.lower <= found.expected <= found.upper
        inverse = found.inverted(len(rows))
        assert inverse.lower <= len(rows) - int(wanted.sum()) <= inverse.upper


def _large(rows: int) -> pa.RecordBatch:
    blank = {"attributes": {}, "extra": {}, "text": None, "media_type": None, "event_time": None}
    return make_batch(
        [blank | {"attributes": {"size": at % 7, "colour": f"c{at % 3}", "weight": float(at), "tags": [f"t{at}"]}} for at in range(rows)]
    )


def test_an_estimate_is_exact_for_one_condition_and_needs_no_mask() -> None:
    part = make_part([_large(700)], np.ones(700, np.bool_), indexed=True)
    for raw, wanted in (
        ({"key": "size", "match": {"value": 3}}, 100),
        ({"key": "size", "range": {"gte": 5}}, 200),
        ({"key": "colour", "match": {"any": ["c0", "c1", "zz"]}}, 467),
        ({"key": "colour", "match": {"except": ["c0"]}}, 466),
        ({"key": "weight", "range": {"lt": 10.5}}, 11),
    ):
        assert estimate_filter(parse_filter({"must": raw}, SCHEMA), part) == Estimate.exact(wanted)
    both = estimate_filter(
        parse_filter({"must": [{"key": "size", "match": {"value": 3}}, {"key": "colour", "match": {"value": "c0"}}]}, SCHEMA), part
    )
    assert both.lower == 0 and both.upper == 100 and abs(both.expected - 33) <= 1


def test_an_index_keeps_to_its_bytes_and_drops_only_what_was_not_used_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, live = _large(2000), np.ones(2000, np.bool_)
    part = make_part([batch], live, indexed=True)
    index = part.filter_index
    assert index is not None and index.size_bytes == 0

    def use(key: str, value: Any) -> set[str]:
        wanted = parse_filter({"must": {"key": key, "match": {"value": value}}}, SCHEMA)
        found = apply_filter(wanted, part, live)
        assert found.tolist() == apply_filter(wanted, make_part([batch], live, indexed=False), live).tolist()
        assert index.size_bytes <= filter_index.MAX_BYTES_PER_ROW * 2000
        return {name for name, _ in index._built}  # noqa: SLF001

    monkeypatch.setattr(filter_index, "MAX_BYTES_PER_ROW", 20)
    assert use("size", 1) == {"size"} and index.size_bytes > 0
    assert use("weight", 1.0) == {"size"}, "the other one was used a moment ago: the newcomer is scanned"
    for _ in range(filter_index.PATIENCE):
        kept = use("weight", 1.0)
    assert kept == {"weight"}, "used alone for so long it gets the room"
    monkeypatch.setattr(filter_index, "MAX_BYTES_PER_ROW", 10)
    fresh = make_part([batch], live, indexed=True)
    apply_filter(parse_filter({"must": {"key": "tags", "match": {"value": "t5"}}}, SCHEMA), fresh, live)
    assert fresh.filter_index is not None and fresh.filter_index.size_bytes == 0, "postings that are larger than all may be are not kept"


def test_a_query_that_comes_while_an_index_is_built_scans_instead_of_waiting() -> None:
    part = make_part([_large(100)], np.ones(100, np.bool_), indexed=True)
    index = part.filter_index
    assert index is not None
    wanted = parse_filter({"must": {"key": "size", "match": {"value": 3}}}, SCHEMA)
    with index._building:  # noqa: SLF001
        meanwhile = apply_filter(wanted, part, part.live)
        assert index.size_bytes == 0
    assert meanwhile.tolist() == apply_filter(wanted, part, part.live).tolist() and index.size_bytes > 0
