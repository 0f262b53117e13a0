"""Canonical JSON: one byte string per value, and a reader that refuses what a careless one lets through."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import canonical_json

plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | plain_text
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4), max_leaves=20)


@given(values)
def test_a_value_comes_back_and_its_bytes_are_stable(value: object) -> None:
    data = canonical_json.dump(value)
    assert canonical_json.load(data) == value
    assert canonical_json.dump(canonical_json.load(data)) == data


@given(st.dictionaries(plain_text, st.integers(), min_size=2, max_size=6))
def test_the_order_of_keys_in_memory_does_not_show(value: dict[str, int]) -> None:
    assert canonical_json.dump(value) == canonical_json.dump(dict(reversed(value.items())))


@given(values, st.integers(0, 3))
def test_white_space_and_escapes_do_not_change_the_value(value: object, indent: int) -> None:
    assert canonical_json.load(json.dumps(value, indent=indent).encode()) == value


@pytest.mark.parametrize("data", [
    b"", b"{", b"[1,]", b"{'a':1}", b"nul", b"1 2", b"\xff", b'"\xed\xa0\x80"', b'{"a":1,"a":1}', b'[{"a":{"b":1,"b":2}}]', b"NaN", b"[Infinity]",
    b"-Infinity", b"1e999", b"[-1e400]", b'"\\ud800"', b'{"\\udfff":1}', b'{"a":"\\ud83d x"}', b"\xef\xbb\xbf{}", b"1" * 5000,
])  # fmt: skip
def test_what_is_not_strict_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        canonical_json.load(data)


@pytest.mark.parametrize("data", [b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b"[" * 10_000, b"[" * 102 + b"]" * 102])
def test_deep_nesting_is_refused_and_not_a_crash(data: bytes) -> None:
    with pytest.raises(ValueError):
        canonical_json.load(data)


def test_the_deepest_value_that_is_read_can_be_written() -> None:
    data = b"[" * canonical_json.MAX_DEPTH + b"1" + b"]" * canonical_json.MAX_DEPTH
    assert canonical_json.dump(canonical_json.load(data)) == data


def test_a_pair_of_surrogate_escapes_is_one_character() -> None:
    assert canonical_json.load(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_size_is_checked_before_parsing() -> None:
    with pytest.raises(ValueError, match="more than 10"):
        canonical_json.load(b'"' + b"x" * 20 + b'"', max_bytes=10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_a_value_that_is_not_json_is_not_written(value: object) -> None:
    with pytest.raises(ValueError):
        canonical_json.dump(value)


@given(st.binary(max_size=60))
def test_random_bytes_never_raise_anything_but_a_value_error(data: bytes) -> None:
    try:
        value = canonical_json.load(data)
    except ValueError:
        return
    canonical_json.dump(value)


@given(st.lists(st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True), min_size=1, max_size=20))
def test_bytes_and_text_are_read_by_two_parsers_and_give_the_same_numbers(numbers: list[str]) -> None:
    data = "[" + ",".join(numbers) + "]"
    try:
        wanted = canonical_json.load(data)
    except ValueError:  # beyond float64
        with pytest.raises(ValueError, match="too large"):
            canonical_json.load(data.encode())
        return
    found = canonical_json.load(data.encode())
    assert found == wanted and list(map(type, found)) == list(map(type, wanted)) and list(map(repr, found)) == list(map(repr, wanted))


@given(st.text(st.sampled_from('{}[]",:1e.-+ \n\tab\\u0'), max_size=30))
def test_the_quick_parser_takes_nothing_that_the_other_one_refuses(text: str) -> None:
    try:
        wanted = canonical_json.load(text)
    except ValueError:
        with pytest.raises(ValueError):
            canonical_json.load(text.encode())
        return
    assert canonical_json.load(text.encode()) == wanted
