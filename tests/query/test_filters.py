"""Reading filters: every form, and every mistake by its name and place."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import SettingsError
from query import filters
from query.filter_index import INDEX_FROM_ROWS, MAX_BYTES_PER_ROW, SCAN_SHARE
from query.filter_paths import MAX_STEPS
from query.filter_tests import MAX_WORDS
from query.filter_tree import AnyOf, Condition, Count, Empty, Filter, HasId, InBox, Key, NoneOf, Within, Words
from query.filters import parse_filter
from tests.query.filter_rows import FILTERS, SCHEMA


def only(raw: Any) -> Any:
    found = parse_filter({"must": [raw]}, SCHEMA)
    assert found is not None and len(found.must) == 1
    node = found.must[0]
    return node.test if isinstance(node, Condition) else node


def at(key: str, **test: Any) -> Any:
    return only({"key": key, **test})


def test_no_filter_is_none_and_an_empty_clause_asks_for_nothing() -> None:
    assert parse_filter(None, SCHEMA) is None and parse_filter({}, SCHEMA) is None
    assert parse_filter({"should": [], "must": None}, SCHEMA) == Filter()


def test_values_are_stored_as_their_type_stores_them() -> None:
    assert at("colour", match={"value": 7}) == AnyOf(("7",))
    assert at("sizes", match={"any": [1, 2.0]}) == AnyOf((1, 2))
    assert at("ok", match={"except": [True]}) == NoneOf((True,))
    assert at("when", match={"value": "1970-01-01T00:00:01+00:00"}) == AnyOf((1_000_000,))
    assert at("place", match={"value": {"lat": 1, "lon": 2}}) == AnyOf(((1.0, 2.0),))
    assert at("about", match={"text": "Red  bicycle, red!"}) == Words(("red", "bicycle"), True)
    assert at("text", match={"text_any": "a b"}) == Words(("a", "b"), False)


def test_bounds_of_whole_numbers_are_whole_and_included() -> None:
    assert at("size", range={"gt": 1, "lt": 3.5}) == Within(2, 3)
    assert at("size", range={"gte": 1.5, "lte": 1e300}) == Within(2, 2**63 - 1)
    empty = at("size", range={"gt": 1e19})
    assert empty.low > empty.high
    assert at("tags", values_count={"gte": 2}) == Count(Within(2, 2**63 - 1))
    assert at("weight", range={"gt": 1, "lte": 2}) == Within(1.0, 2.0, includes_low=False)
    assert at("when", range={"lt": "1970-01-01T00:00:00Z"}) == Within(None, 0, includes_high=False)
    assert at("note", range={"lt": "1970-01-01T00:00:00Z"}) == Within(None, 0, includes_high=False, is_time=True)
    box = {"top_left": {"lat": 2, "lon": 179}, "bottom_right": {"lat": 1, "lon": -179}}
    assert at("place", geo_bounding_box=box) == InBox(1, 179, 2, -179)


def test_a_key_is_an_attribute_or_a_column_of_every_row_or_a_path() -> None:
    def key(name: str) -> Key:
        node = parse_filter({"must": {"is_empty": {"key": name}}}, SCHEMA).must[0]  # type: ignore[union-attr]
        assert isinstance(node, Condition) and node.test == Empty()
        return node.key

    assert key("tags") == key("tags[]") == Key("tags", "attribute", "keyword", True)
    assert key("event_time") == Key("event_time", "row", "datetime")
    assert key("a.b[0].c[]").path == ("a", "b", 0, "c", None)
    assert key('"text"').path == ("text",) and key('"a.b"').path == ("a.b",)
    declared = parse_filter({"must": {"is_empty": {"key": "text"}}}, {"text": "keyword"})
    assert declared == Filter((Condition(Key("text", "attribute", "keyword"), Empty()),)), "a declared attribute comes before a row's own column"


def test_conditions_with_flags_and_ids() -> None:
    assert only({"has_id": ["a", 7, "a"]}) == HasId(("a", "7"))
    exists = only({"key": "size", "is_empty": False})
    assert exists == Filter(must_not=(Condition(Key("size", "attribute", "integer"), Empty()),))
    assert only({"should": [{"key": "ok", "match": {"value": True}}], "must": None}).should[0].test == AnyOf((True,))


WRONG: list[tuple[Any, str]] = [
    ([], "a filter is not an object"),
    ({"mst": []}, "'mst' is not a part of a filter"),
    ({"must": "size"}, "must: not a list"),
    ({"must": ["size"]}, "must[0]: a condition is not an object"),
    ({"must": [{}]}, "must[0]: a condition is empty"),
    ({"must": [{"colour": "red"}]}, "must[0]: a condition has 'colour', and no key"),
    ({"must": [{"key": "size"}]}, "has no test"),
    ({"must": [{"key": "size", "match": {"value": 1}, "range": {"gt": 1}}]}, "has several tests (match, range)"),
    ({"must": [{"key": "size", "matches": {"value": 1}}]}, "'matches' is not a test"),
    ({"must": [{"key": "size", "match": 1}]}, "the test is not an object"),
    ({"must": [{"key": "size", "match": {"value": 1, "any": [1]}}]}, "match has several tests"),
    ({"must": [{"key": "size", "match": {}}]}, "match has no test"),
    ({"must": [{"key": "colour", "match": {"prefix": "r"}}]}, "match.prefix is not supported"),
    ({"must": [{"key": "size", "match": {"any": 1}}]}, "match.any is not a list"),
    ({"must": [{"key": "size", "match": {"value": "one"}}]}, "attribute 'size' (integer): not a whole number"),
    ({"must": [{"key": "size", "match": {"value": None}}]}, "match has no test"),
    ({"must": [{"key": "size", "match": {"value": [1]}}]}, "not one that can be compared"),
    ({"must": [{"key": "ok", "match": {"value": 1}}]}, "attribute 'ok' (bool): not true or false"),
    ({"must": [{"key": "tags", "match": {"any": ["a", True]}}]}, "attribute 'tags' (keyword[]): not a string"),
    ({"must": [{"key": "colour", "match": {"text": "red"}}]}, "match.text is for attributes of type text"),
    ({"must": [{"key": "about", "match": {"text": "?!"}}]}, "match.text has 0 words"),
    ({"must": [{"key": "about", "match": {"text": 1}}]}, "match.text is not a string"),
    ({"must": [{"key": "colour", "range": {"gt": 1}}]}, "attribute 'colour' (keyword): it has no order"),
    ({"must": [{"key": "size", "range": {}}]}, "there is no bound"),
    ({"must": [{"key": "size", "range": {"from": 1}}]}, "'from' is not a bound"),
    ({"must": [{"key": "size", "range": {"gt": 1, "gte": 1}}]}, "two bounds of one side"),
    ({"must": [{"key": "size", "range": {"gt": "1"}}]}, "a bound is not a number"),
    ({"must": [{"key": "size", "range": {"gt": math.nan}}]}, "a bound is not a number"),
    ({"must": [{"key": "weight", "range": {"gt": math.inf}}]}, "a bound is not a number"),
    ({"must": [{"key": "when", "range": {"gt": "2026-11-01T00:00:00"}}]}, "the time has no zone"),
    ({"must": [{"key": "note", "range": {"gt": "2026-11-01T00:00:00Z", "lt": 1}}]}, "one bound is a time and one a number"),
    ({"must": [{"key": "size", "geo_radius": {}}]}, "not a place"),
    ({"must": [{"key": "place", "geo_radius": {"center": {"lat": 1, "lon": 1}}}]}, "not a circle"),
    ({"must": [{"key": "place", "geo_radius": {"center": {"lat": 91, "lon": 1}, "radius": 1}}]}, "center: latitude or longitude out of range"),
    ({"must": [{"key": "place", "geo_radius": {"center": {"lat": 1, "lon": 1}, "radius": -1}}]}, "the radius is not"),
    ({"must": [{"key": "place", "geo_bounding_box": {"top_left": {"lat": 1, "lon": 1}, "bottom_right": {"lat": 2, "lon": 2}}}]}, "lies south"),
    ({"must": [{"key": "place", "geo_polygon": {}}]}, "'geo_polygon' is not a test"),
    ({"must": [{"key": "tags", "values_count": {"gt": True}}]}, "a bound is not a number"),
    ({"must": [{"key": "size", "is_empty": 1}]}, "not true or false"),
    ({"must": [{"is_null": "size"}]}, "must[0].is_null: not an object with a key"),
    ({"must": [{"key": 5, "match": {"value": 1}}]}, "the key is not a string"),
    ({"must": [{"key": "x" * 513, "match": {"value": 1}}]}, "the key is not a string of 1 to 512"),
    ({"must": [{"key": "a..b", "match": {"value": 1}}]}, "not a path"),
    ({"must": [{"key": "a[x]", "match": {"value": 1}}]}, "not a path"),
    ({"must": [{"key": "a.b." * 9 + "c", "match": {"value": 1}}]}, "more than 16 steps"),
    ({"must": [{"key": "place.lat", "match": {"value": 1}}]}, "'place' is declared, and has no parts"),
    ({"must": [{"has_id": "a"}]}, "has_id: not a list of ids"),
    ({"must": [{"has_id": [1.5]}]}, "has_id: not a list of ids"),
    ({"must": [{"nested": {"key": "a", "filter": {}}}]}, "'nested' is not supported"),
    ({"must": [{"has_vector": "own"}]}, "'has_vector' is not supported"),
    ({"min_should": [{"key": "size", "match": {"value": 1}}]}, "min_should: not an object of `conditions` and `min_count`"),
    ({"min_should": {"conditions": [], "min_count": -1}}, "min_count is not a whole number"),
    ({"must": [{"must": [{"should": {"key": "size", "match": {"value": "x"}}}]}]}, "filter.must[0].must[0].should.match: attribute 'size'"),
]


@pytest.mark.parametrize(("raw", "said"), WRONG)
def test_a_mistake_is_refused_by_its_name_and_place(raw: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_filter(raw, SCHEMA)
    assert caught.value.error_code == "invalid_filter"
    assert said in caught.value.message and caught.value.hint, caught.value.message


def test_the_limits_hold_and_say_so() -> None:
    one = {"key": "size", "match": {"value": 1}}
    deep: Any = {"must": [one]}
    for _ in range(filters.MAX_DEPTH - 1):
        deep = {"must": [deep]}
    assert parse_filter(deep, SCHEMA) is not None
    assert parse_filter({"must": [one] * filters.MAX_CONDITIONS}, SCHEMA) is not None
    assert parse_filter({"must": {"has_id": ["x"] * filters.MAX_VALUES}}, SCHEMA) is not None
    for raw, said in (
        ({"must": [deep]}, "nested deeper than 8"),
        ({"must": [one] * 200, "should": {"should": [one] * 200}}, "more than 256 conditions"),
        ({"must": [{"has_id": ["x"] * 9_999}, {"key": "size", "match": {"any": [1, 2]}}]}, "more than 10000 values"),
    ):
        with pytest.raises(SettingsError, match=said):
            parse_filter(raw, SCHEMA)


@given(FILTERS)
def test_every_sound_filter_is_read(raw: Any) -> None:
    assert parse_filter(raw, SCHEMA) is None if raw == {} else isinstance(parse_filter(raw, SCHEMA), Filter)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["size", "when", "value", "2026-11-01T00:00:00Z"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["must", "key", "match", "range", "any", "value", "gt", "lte", "has_id", "geo_radius", "x"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_comes_is_read_or_refused(raw: Any) -> None:
    try:
        parse_filter(raw, SCHEMA)
    except SettingsError as error:
        assert error.error_code == "invalid_filter"


def test_the_filters_of_the_documentation_are_read() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "filters.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    schema = {"category": "keyword", "taken_at": "datetime", "tags": "keyword[]"}
    assert len(examples) == 3 and all(isinstance(parse_filter(json.loads(text), schema), Filter) for text in examples)
    for limit in (filters.MAX_CONDITIONS, filters.MAX_DEPTH, filters.MAX_VALUES, filters.MAX_KEY_CHARACTERS, MAX_WORDS, MAX_STEPS):
        assert re.search(rf"\b{limit:,}\b", page), limit
    assert f"{INDEX_FROM_ROWS:,}" in page and f"{MAX_BYTES_PER_ROW} bytes a row" in page and str(SCAN_SHARE) in page
