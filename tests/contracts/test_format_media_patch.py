"""Patches: RFC 7396, and what it means for typed attributes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.attributes import MAX_ATTRIBUTES_BYTES, coerce_all, to_json
from contracts.errors import RecordError
from contracts.media_patch import checked_patch, merge_patch, patched_attributes

SCHEMA = {"price": "float", "tags": "keyword[]", "place": "geo"}

# RFC 7396, appendix A
RFC_CASES: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), RFC_CASES)
def test_merging_is_that_of_the_rfcs_own_examples(target: Any, patch: Any, result: Any) -> None:
    before = json.dumps([target, patch])
    assert merge_patch(target, patch) == result
    assert json.dumps([target, patch]) == before


values = st.recursive(st.none() | st.integers(-5, 5) | st.text("ab", max_size=2), lambda v: st.dictionaries(st.sampled_from("xyz"), v, max_size=3))
objects = st.dictionaries(st.sampled_from("xyz"), values, max_size=3)


def without_nulls(value: Any) -> Any:
    return {name: without_nulls(inner) for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value


@given(objects.map(without_nulls), objects)
def test_undeclared_attributes_are_merged_as_the_rfc_says(stored: dict[str, Any], patch: dict[str, Any]) -> None:
    after = patched_attributes(coerce_all(stored, SCHEMA), patch, SCHEMA)
    assert after is not None and to_json(after, SCHEMA) == merge_patch(stored, patch)


def test_a_declared_attribute_is_replaced_as_a_whole_and_the_rest_stays() -> None:
    stored = coerce_all({"price": 1, "tags": ["a"], "place": {"lat": 1, "lon": 2}, "note": "x"}, SCHEMA)
    after = patched_attributes(stored, json.loads(checked_patch(b'{"tags":"b","place":{"lat":3,"lon":4}}', SCHEMA)), SCHEMA)
    assert after == {"price": 1.0, "tags": ["b"], "place": {"lat": 3.0, "lon": 4.0}, "extra": '{"note":"x"}'}
    assert patched_attributes(after, {"place": None, "note": None}, SCHEMA) == {"price": 1.0, "tags": ["b"], "place": None, "extra": None}
    with pytest.raises(RecordError, match="attribute place"):
        checked_patch(b'{"place":{"lat":3}}', SCHEMA)


def test_a_name_that_was_declared_later_takes_over_or_stays_in_extra_but_never_fails() -> None:
    old = coerce_all({"size": 4, "colour": "red"}, {})
    newer = {"size": "integer", "colour": "bool"}
    after = patched_attributes(old, json.loads(checked_patch(b'{"size":5,"colour":"blue"}', {})), newer)
    assert after == {"size": 5, "colour": None, "extra": '{"colour":"blue"}'}
    assert after is not None and to_json(after, newer) == {"size": 5, "colour": "blue"}


def test_extra_never_passes_its_limit_by_patches_and_can_always_shrink() -> None:
    stored = {"extra": json.dumps({"a": "x" * MAX_ATTRIBUTES_BYTES}, separators=(",", ":"))}
    assert patched_attributes(stored, {"b": 1}, {}) is None
    assert patched_attributes(stored, {"a": None, "b": 1}, {}) == {"extra": '{"b":1}'}
