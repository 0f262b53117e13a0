"""The tests of a condition, from JSON: match, range, places, counts; checked against the type of the key.

Takes: the name and body of a test, a key. Gives: a `Test` with values as the type stores them. Owns: which test goes with which type.
Never: compares a value with one of another type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from contracts import attributes as typed
from contracts.errors import SettingsError
from query.arrow_masks import words_of
from query.filter_tree import AnyOf, Count, InBox, InCircle, Key, NoneOf, Test, Within, Words

MAX_WORDS = 64
"""Words of one text match."""
Fail = Callable[[str, str], SettingsError]
_TESTS = ("match", "range", "geo_radius", "geo_bounding_box", "values_count")
_MATCHES = "match takes one of value, any, except, text, text_any"
_BOUNDS = ("gt", "gte", "lt", "lte")
_INT64 = 2**63


def read_test(name: str, raw: Any, key: Key, fail: Fail, spend: Callable[[int], None]) -> Test:
    """Read one test.

    Parameters
    ----------
    name, raw
        Such as ``"range"`` and ``{"gte": 3}``.
    key : Key
        What is tested.
    fail : callable
        Makes the error of this condition from what is wrong and a hint.
    spend : callable
        Counts the values of lists against the filter's limit.

    Raises
    ------
    SettingsError
        ``invalid_filter``.
    """
    if name not in _TESTS:
        raise fail(f"{name[:60]!r} is not a test", f"the tests are {', '.join(_TESTS)}, is_empty and is_null")
    if not isinstance(raw, Mapping):
        raise fail("the test is not an object", f"the tests are {', '.join(_TESTS)}, is_empty and is_null")
    given = {str(each): value for each, value in raw.items() if value is not None}
    if name == "match":
        return _match(given, key, fail, spend)
    if name == "values_count":
        return Count(_whole_numbers(_bounds(given, fail), fail))
    if name == "range":
        return _range(given, key, fail)
    if key.kind not in ("geo", ""):
        raise fail("not a place", f"{name} is for attributes of type geo")
    return _circle(given, fail) if name == "geo_radius" else _box(given, fail)


# ---- match --------------------------------------------------------------------------------------------------------
def _match(given: dict[str, Any], key: Key, fail: Fail, spend: Callable[[int], None]) -> Test:
    if len(given) != 1:
        raise fail("match has no test" if not given else "match has several tests", _MATCHES)
    form, raw = next(iter(given.items()))
    if form in ("text", "text_any"):
        if key.kind not in ("text", ""):
            raise fail(f"match.{form} is for attributes of type text", "use match.value or match.any")
        if not isinstance(raw, str):
            raise fail(f"match.{form} is not a string", "give words")
        words = tuple(word for word in dict.fromkeys(words_of(pa.array([raw], pa.utf8())).values.to_pylist()) if word)
        if not 0 < len(words) <= MAX_WORDS:
            raise fail(f"match.{form} has {len(words)} words", f"give 1 to {MAX_WORDS} words of letters and digits")
        return Words(words, form == "text")
    if form == "value":
        return AnyOf((_value(raw, key, fail),))
    if form not in ("any", "except"):
        raise fail(f"match.{form[:60]} is not supported", _MATCHES)
    if not isinstance(raw, list | tuple):
        raise fail(f"match.{form} is not a list", "give a list of values")
    spend(len(raw))
    values = tuple(_value(each, key, fail) for each in raw)
    return AnyOf(values) if form == "any" else NoneOf(values)


def _value(raw: Any, key: Key, fail: Fail) -> Any:
    """One value as the type stores it: a string, number or bool, times in microseconds, a place as (lat, lon)."""
    if not isinstance(raw, Mapping if key.kind == "geo" else str | int | float | bool):
        raise fail("the value is not one that can be compared", "give a string, a number, true or false, or {lat, lon} for a place")
    if not key.kind:
        return raw
    try:
        value = typed.coerce(dict(raw) if isinstance(raw, Mapping) else raw, key.kind)
    except (ValueError, OverflowError) as error:
        raise fail(str(error), "give a value of the attribute's type") from None
    return (value["lat"], value["lon"]) if key.kind == "geo" else value


# ---- range --------------------------------------------------------------------------------------------------------
def _bounds(given: dict[str, Any], fail: Fail) -> dict[str, Any]:
    unknown = sorted(set(given) - set(_BOUNDS))
    if unknown or not given:
        raise fail(f"{unknown[0][:60]!r} is not a bound" if unknown else "there is no bound", "the bounds are gt, gte, lt and lte")
    if {"gt", "gte"} <= set(given) or {"lt", "lte"} <= set(given):
        raise fail("there are two bounds of one side", "give gt or gte, and lt or lte")
    return given


def _within(given: Mapping[str, Any], is_time: bool = False) -> Within:
    low, high = given.get("gt", given.get("gte")), given.get("lt", given.get("lte"))
    return Within(low, high, "gt" not in given, "lt" not in given, is_time)


def _range(given: dict[str, Any], key: Key, fail: Fail) -> Within:
    given = _bounds(given, fail)
    if key.kind == "integer":
        return _whole_numbers(given, fail)
    if key.kind not in ("float", "datetime", ""):
        raise fail("it has no order", "range is for integer, float and datetime")
    strings = sum(isinstance(value, str) for value in given.values())
    if not key.kind and 0 < strings < len(given):
        raise fail("one bound is a time and one a number", "give both as RFC 3339 times, or both as numbers")
    kind = key.kind or ("datetime" if strings else "float")
    try:
        coerced = {name: typed.coerce(value, kind) for name, value in given.items()}
    except (ValueError, OverflowError) as error:
        raise fail(f"a bound is {error}", "give numbers, or RFC 3339 times with a zone for datetime") from None
    if not key.kind and not strings:
        coerced = given  # JSON's numbers are compared exactly
    return _within(coerced, is_time=bool(not key.kind and strings))


def _whole_numbers(given: dict[str, Any], fail: Fail) -> Within:
    """Bounds of whole numbers, both included, within 64 bits; an empty range has its low above its high."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) for value in _bounds(given, fail).values()):
        raise fail("a bound is not a number", "give numbers")
    low = math.floor(given["gt"]) + 1 if "gt" in given else math.ceil(given["gte"]) if "gte" in given else -_INT64
    high = math.ceil(given["lt"]) - 1 if "lt" in given else math.floor(given["lte"]) if "lte" in given else _INT64 - 1
    if low >= _INT64 or high < -_INT64:
        return Within(1, 0)
    return Within(max(low, -_INT64), min(high, _INT64 - 1))


# ---- places -------------------------------------------------------------------------------------------------------
def _point(raw: Any, fail: Fail, what: str) -> tuple[float, float]:
    try:
        point = typed.coerce(dict(raw) if isinstance(raw, Mapping) else raw, "geo")
        return point["lat"], point["lon"]
    except (ValueError, TypeError) as error:
        raise fail(f"{what}: {error}", 'a place is {"lat": DEGREES, "lon": DEGREES}') from None


def _circle(given: dict[str, Any], fail: Fail) -> InCircle:
    hint = 'geo_radius is {"center": {"lat": ..., "lon": ...}, "radius": METRES}'
    if set(given) != {"center", "radius"}:
        raise fail("not a circle", hint)
    radius = given["radius"]
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius < math.inf:
        raise fail("the radius is not a number of metres", hint)
    return InCircle(*_point(given["center"], fail, "center"), float(radius))


def _box(given: dict[str, Any], fail: Fail) -> InBox:
    if set(given) != {"top_left", "bottom_right"}:
        raise fail("not a box", 'geo_bounding_box is {"top_left": {"lat": ..., "lon": ...}, "bottom_right": {...}}')
    north, west = _point(given["top_left"], fail, "top_left")
    south, east = _point(given["bottom_right"], fail, "bottom_right")
    if south > north:
        raise fail("the box's top_left lies south of its bottom_right", "top_left is the north-western corner")
    return InBox(south, west, north, east)
