"""Filters: from JSON to a typed tree, and from the tree to a mask over a part's rows.

In this version a filter is ``{"must": [{"key": K, "match": {"value": V}}, ...]}`` (Qdrant's shape): every condition holds, and a condition is
equality, or membership where the attribute is an array. Declared attributes are compared by their type, places by both numbers, undeclared ones as
JSON values.

Takes: the filter of a request, a schema, parts. Gives: masks. Owns: what a filter means. Never: ignores a form that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts import attributes as typed
from contracts.errors import SettingsError
from query.parts import Part

MAX_CONDITIONS = 64
_FORMS = 'this version knows {"must": [{"key": "NAME", "match": {"value": VALUE}}]}, with VALUE a string, number, true/false, or {"lat", "lon"}'


@dataclass(frozen=True, slots=True)
class Match:
    """Equality of one attribute with a value; `kind` is the declared type, None for an undeclared attribute."""

    key: str
    value: Any
    kind: str | None


@dataclass(frozen=True, slots=True)
class Filter:
    """All of these hold."""

    must: tuple[Match, ...]


def parse_filter(raw: Any, schema: Mapping[str, str]) -> Filter | None:
    """Read the filter of a request; None, null and an empty object are no filter.

    Raises
    ------
    SettingsError
        ``invalid_filter``: not a form of this version, or a value of another type than the attribute.
    """
    if raw is None or raw == {}:
        return None
    if not isinstance(raw, Mapping) or set(raw) != {"must"}:
        raise _unknown("a filter")
    conditions = raw["must"] if isinstance(raw["must"], list) else [raw["must"]]
    if len(conditions) > MAX_CONDITIONS:
        raise SettingsError(f"the filter has {len(conditions)} conditions", hint=f"use at most {MAX_CONDITIONS}", code="invalid_filter")
    return Filter(tuple(_match(condition, schema) for condition in conditions))


def _match(raw: Any, schema: Mapping[str, str]) -> Match:
    if not isinstance(raw, Mapping) or set(raw) != {"key", "match"} or not isinstance(raw["key"], str):
        raise _unknown("a condition")
    if not isinstance(raw["match"], Mapping) or set(raw["match"]) != {"value"}:
        raise _unknown(f"the match of key {raw['key'][:60]!r}")
    key, value = raw["key"], raw["match"]["value"]
    kind = schema.get(key)
    is_place = kind is not None and kind.removesuffix("[]") == "geo"
    if not isinstance(value, Mapping if is_place else str | int | float | bool):
        raise _unknown(f"the value of key {key[:60]!r}")
    if kind is None:
        return Match(key, value, None)
    try:
        return Match(key, typed.coerce(value, kind.removesuffix("[]")), kind)
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            f"filter on attribute {key!r} ({kind}): {error}", hint="give a value of the attribute's type", code="invalid_filter"
        ) from None


def _unknown(what: str) -> SettingsError:
    return SettingsError(f"{what} has a form that is not known", hint=_FORMS, code="invalid_filter")


def apply_filter(chosen: Filter | None, part: Part, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask over a part's rows, shape (n,): eligible and every condition holds."""
    for match in () if chosen is None else chosen.must:
        if not eligible.any():
            break
        masks = [_holds(match, batch, eligible[start : start + batch.num_rows]) for batch, start in zip(part.batches, part.starts, strict=True)]
        eligible = eligible & np.concatenate(masks)
    return eligible


def _holds(match: Match, batch: pa.RecordBatch, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    column = batch.column("attributes")
    if match.kind is None:
        return _extra_holds(match, pc.struct_field(column, typed.EXTRA), eligible)
    values = pc.struct_field(column, match.key)
    if not match.kind.endswith("[]"):
        return _equal(values, match.value)
    hit = _equal(pc.list_flatten(values), match.value)
    mask = np.zeros(batch.num_rows, np.bool_)
    mask[np.asarray(pc.list_parent_indices(values))[hit]] = True
    return mask


def _equal(values: pa.Array, wanted: Any) -> NDArray[np.bool_]:
    if isinstance(wanted, Mapping):
        return np.logical_and(*(_equal(pc.struct_field(values, name), wanted[name]) for name in ("lat", "lon")))
    return np.asarray(pc.equal(values, pa.scalar(wanted, values.type)).fill_null(False))


def _extra_holds(match: Match, extra: pa.Array, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Undeclared attributes lie in one JSON column: only eligible rows whose text holds the key are parsed."""
    named = np.asarray(pc.match_substring(extra, json.dumps(match.key, ensure_ascii=False) + ":").fill_null(False))
    rows = np.flatnonzero(named & eligible)
    mask = np.zeros(len(extra), np.bool_)
    for row, text in zip(rows, extra.take(pa.array(rows)).to_pylist(), strict=True):
        found = json.loads(text).get(match.key)  # canonical JSON that was checked when it was written
        mask[row] = any(_same(value, match.value) for value in found) if isinstance(found, list) else _same(found, match.value)
    return mask


def _same(found: Any, wanted: Any) -> bool:
    """JSON equality: true is not 1, 1 is 1.0, "1" is not 1."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    return bool(found == wanted)
