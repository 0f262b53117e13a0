"""Stored JSON: every bit of an object is covered by the hash that it carries."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import canonical_json
from contracts.errors import CorruptError
from contracts.hashed_json import with_hash, without_hash
from tests.contracts.format_samples import collection, field

LINE = collection(field("image")).to_bytes().split(b"\n")[0]


def test_an_object_is_its_json_and_the_hash_of_it() -> None:
    data = with_hash(LINE)
    first, second, rest = data.split(b"\n")
    assert (first, json.loads(second), rest) == (LINE, "sha256:" + hashlib.sha256(LINE).hexdigest(), b"")
    assert without_hash(data, "here") == LINE


def test_each_flipped_bit_each_missing_end_and_each_addition_is_refused_before_it_is_parsed() -> None:
    data = with_hash(LINE)
    flipped = [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]
    for spoilt in [*flipped, *(data[:end] for end in range(len(data))), data + b"\n", data + data, b"\n" + data, LINE, LINE + b"\n"]:
        with pytest.raises(CorruptError, match="^here: its bytes are not those that were hashed"):
            without_hash(spoilt, "here")


@given(st.recursive(st.none() | st.text() | st.integers(-(2**53), 2**53), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner)))
def test_canonical_json_never_holds_a_line_feed(value: object) -> None:
    line = canonical_json.dump(value)
    assert b"\n" not in line and without_hash(with_hash(line), "here") == line
