"""Typed attributes: what may be stored, in which type, and how it is shown again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.attributes import ARROW_TYPES, EXTRA, MAX_TIME_US, MIN_TIME_US, arrow_type, coerce, coerce_all, parse_time, struct_type, to_json

SCHEMA = {
    "kind": "keyword", "sold": "bool", "stock": "integer", "price": "float", "taken": "datetime", "place": "geo", "note": "text",
    "tags": "keyword[]", "days": "datetime[]", "spots": "geo[]", "sizes": "integer[]",
}  # fmt: skip
stamps = st.integers(MIN_TIME_US, MAX_TIME_US)


def rfc3339(stamp_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stamp_us)).isoformat().replace("+00:00", "Z")


points = st.fixed_dictionaries({"lat": st.floats(-90, 90), "lon": st.floats(-180, 180)})
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
typed_values: dict[str, st.SearchStrategy[Any]] = {
    "keyword": texts,
    "bool": st.booleans(),
    "integer": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300),
    "datetime": stamps.map(rfc3339),
    "geo": points,
    "text": texts,
}


def strategy_of(kind: str) -> st.SearchStrategy[Any]:
    return st.lists(typed_values[kind[:-2]], max_size=3) if kind.endswith("[]") else typed_values[kind]


attributes = st.fixed_dictionaries({}, optional={name: strategy_of(kind) for name, kind in SCHEMA.items()})
extras = st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers() | texts | st.lists(st.integers(), max_size=2), max_size=2)


@given(attributes, extras)
def test_attributes_come_back_from_an_arrow_column_as_they_went_in(given_values: dict[str, Any], extra: dict[str, Any]) -> None:
    stored = coerce_all({**given_values, **extra}, SCHEMA)
    column = pa.array([stored], struct_type(SCHEMA))
    column.validate(full=True)
    shown = to_json(column.to_pylist()[0], SCHEMA)
    assert {name: value for name, value in shown.items() if not name.startswith(("taken", "days"))} == {
        name: value for name, value in {**given_values, **extra}.items() if not name.startswith(("taken", "days"))
    }
    assert [parse_time(x) for x in shown.get("days", [])] == [parse_time(x) for x in given_values.get("days", [])]
    if "taken" in given_values:
        assert parse_time(shown["taken"]) == parse_time(given_values["taken"])


@pytest.mark.parametrize(("kind", "value", "stored"), [
    ("keyword", 7, "7"), ("keyword", "x", "x"), ("integer", 3.0, 3), ("float", 3, 3.0), ("keyword[]", "one", ["one"]), ("integer[]", [], []),
    ("datetime", 1.5, 1_500_000), ("datetime", -1, -1_000_000), ("bool", False, False), ("geo", {"lat": -90, "lon": 180},
    {"lat": -90.0, "lon": 180.0}),
    ("text", None, None), ("geo[]", None, None),
])  # fmt: skip
def test_these_values_are_brought_to_the_declared_type(kind: str, value: Any, stored: Any) -> None:
    assert coerce(value, kind) == stored


@pytest.mark.parametrize(("kind", "value"), [
    ("keyword", True), ("keyword", 1.5), ("keyword", ["a"]), ("bool", 1), ("bool", "true"), ("integer", 1.5), ("integer", True), ("integer", "1"),
    ("integer", 2**63), ("integer", -(2**63) - 1), ("float", "1"), ("float", True), ("float", 10**400), ("float", float("nan")),
    ("float", float("inf")),
    ("datetime", "yesterday"), ("datetime", "2026-11-23"), ("datetime", "2026-11-23T00:00:00"), ("datetime", "2026-13-01T00:00:00Z"),
    ("datetime", 1e13),
    ("datetime", -1e11), ("datetime", True), ("datetime", float("nan")), ("geo", [1, 2]), ("geo", {"lat": 91, "lon": 0}), ("geo", {"lat": 0}),
    ("geo", {"lat": 0, "lon": 0, "x": 0}), ("geo", {"lat": float("nan"), "lon": 0}), ("text", 5), ("keyword[]", [None]), ("integer[]", ["1"]),
])  # fmt: skip
def test_a_value_of_the_wrong_type_is_an_error_that_names_the_attribute_and_not_the_value(kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^attribute colour \(") as caught:
        coerce_all({"colour": value}, {"colour": kind})
    assert "yesterday" not in str(caught.value)


@given(stamps, st.integers(-14 * 60, 14 * 60))
def test_a_time_keeps_its_microseconds_in_every_zone(stamp_us: int, zone_minutes: int) -> None:
    zone = timezone(timedelta(minutes=zone_minutes))
    try:
        local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stamp_us)).astimezone(zone)
    except OverflowError:
        return
    assert parse_time(local.isoformat()) == stamp_us


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-11-23T10:00:00", "2026-11-23", "20261123T000000Z", "0001-01-01T00:00:00+01:00", "٢٠٢٦-11-23T00:00:00Z", "2026-11-23T99:00:00Z"],
)
def test_what_is_not_an_rfc_3339_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_small_letters_are_allowed_in_a_time() -> None:
    assert parse_time("1970-01-01t00:00:01z") == 1_000_000


def test_every_type_has_an_arrow_type_and_an_array_of_it() -> None:
    for name, arrow in ARROW_TYPES.items():
        assert arrow_type(name) == arrow and arrow_type(name + "[]") == pa.list_(arrow)
    for wrong in ("", "keyword[][]", "int", "keyword\n", "[]"):
        with pytest.raises(ValueError):
            arrow_type(wrong)


def test_the_struct_has_its_columns_in_alphabetical_order_and_extra_last() -> None:
    assert [field.name for field in struct_type(SCHEMA)] == [*sorted(SCHEMA), EXTRA]


def test_what_the_schema_does_not_know_is_kept_in_extra_as_canonical_json() -> None:
    assert coerce_all({"b": 1, "a": [2]}, {})[EXTRA] == '{"a":[2],"b":1}'
    assert coerce_all({}, SCHEMA)[EXTRA] is None
