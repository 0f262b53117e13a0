"""Conditions on undeclared attributes: they lie in one column of JSON, which only the rows in question are parsed of.

Takes: a key with a path, a test, the column, wanted rows. Gives: masks. Owns: how JSON values are compared. Never: keeps what it parsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts import attributes as typed
from query.arrow_masks import Mask, as_mask
from query.filter_paths import find
from query.filter_scan import holds
from query.filter_tree import AnyOf, Count, Empty, InBox, InCircle, Key, NoneOf, Null, Test, ValueTest, Within, Words

_PLACE = typed.arrow_type("geo")


def scan_extra(extra: pa.Array, key: Key, test: Test, wanted: Mask) -> Mask:
    """Mask of the rows for which a test holds, shape (rows,); right for wanted rows, False for the others.

    Parameters
    ----------
    extra : pyarrow.Array
        Canonical JSON of each row, or null.
    key, test
        The condition.
    wanted : NDArray[np.bool_]
        shape (rows,).
    """
    name = json.dumps(key.path[0], ensure_ascii=False)
    named = as_mask(pc.match_substring(extra, name + ":"))
    mask = wanted & ~named if _missing_passes(test) else np.zeros(len(extra), np.bool_)
    for literal in _literals(test):
        named &= as_mask(pc.match_substring(extra, literal))
    rows = np.flatnonzero(named & wanted)
    for row, text in zip(rows, extra.take(pa.array(rows)).to_pylist(), strict=True):
        mask[row] = _holds(find(json.loads(text), key.path), test)  # canonical JSON that was checked when it was written
    return mask


def _literals(test: Test) -> list[str]:
    """What the JSON of a row must hold, where that is known: the one string that a value must equal."""
    if isinstance(test, AnyOf) and len(test.values) == 1 and isinstance(test.values[0], str):
        return [json.dumps(test.values[0], ensure_ascii=False)]
    return []


def _missing_passes(test: Test) -> bool:
    return isinstance(test, Empty) or (isinstance(test, Count) and test.within.holds(0))


def _holds(found: list[Any], test: Test) -> bool:
    """Whether a test holds of what lies at the path: an array there stands for its elements."""
    if isinstance(test, Empty):
        return all(value is None or value == [] for value in found)
    if isinstance(test, Null):
        return any(value is None or (isinstance(value, list) and None in value) for value in found)
    if isinstance(test, Count):
        return any(test.within.holds(_count(value)) for value in found or [None])
    values = [value for box in found for value in (box if isinstance(box, list) else [box])]
    return any(value_holds(value, test) for value in values if value is not None)


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value is not None)


def value_holds(value: Any, test: ValueTest) -> bool:
    """Whether a test holds of one JSON value that is not null; of a value of another type it does not."""
    if isinstance(test, AnyOf | NoneOf):
        return any(_same(value, each) for each in test.values) == isinstance(test, AnyOf)
    if isinstance(test, Within):
        return _within(value, test)
    if isinstance(test, Words):
        return isinstance(value, str) and bool(holds(pa.array([value], pa.utf8()), test)[0])
    return _is_near(value, test)


def _is_near(value: Any, test: InBox | InCircle) -> bool:
    try:
        place = typed.coerce(value, "geo") if isinstance(value, Mapping) else None
    except ValueError:
        return False
    return place is not None and bool(holds(pa.array([place], _PLACE), test)[0])


def _within(value: Any, test: Within) -> bool:
    if not test.is_time:
        return isinstance(value, int | float) and not isinstance(value, bool) and test.holds(value)
    try:
        return isinstance(value, str) and test.holds(typed.parse_time(value))
    except ValueError:
        return False


def _same(found: Any, wanted: Any) -> bool:
    """JSON equality: true is not 1, 1 is 1.0, "1" is not 1."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    return bool(found == wanted)
