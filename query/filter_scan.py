"""Conditions on columns by looking at every row: of small parts and the tail, and where an index does not pay.

Takes: a key, a test, an Arrow batch of rows. Gives: masks. Owns: what a test of values means. Never: looks into undeclared attributes.

Filters of an index (query/postings.py) give the same masks; a test holds both against a plain evaluator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from query.arrow_masks import Mask, as_mask, is_text, list_counts, numbers, parents, valid, words_of
from query.filter_tree import Count, Empty, InBox, InCircle, Key, NoneOf, Null, Test, ValueTest, Within, Words

EARTH_RADIUS_METRES = 6_371_008.8
"""Mean radius (IUGG), the one that Qdrant's geo crate takes."""
_FEW = 4
"""Values up to which each is compared by itself; more of them are looked up in a set."""


def column(batch: pa.RecordBatch, key: Key) -> pa.Array:
    """The values of a key of a declared attribute or a row's own column, shape (rows,)."""
    return batch.column(key.name) if key.source == "row" else pc.struct_field(batch.column("attributes"), key.name)


def scan(batch: pa.RecordBatch, key: Key, test: Test) -> Mask:
    """Mask of the rows for which a test holds, shape (rows,)."""
    values = column(batch, key)
    if isinstance(test, Count | Empty | Null):
        return _shape_holds(values, key, test)
    if not key.is_array:
        return holds(values, test)
    mask = np.zeros(len(values), np.bool_)
    mask[parents(values)[holds(pc.list_flatten(values), test)]] = True
    return mask


def _shape_holds(values: pa.Array, key: Key, test: Count | Empty | Null) -> Mask:
    known = valid(values)
    if isinstance(test, Null) or (isinstance(test, Empty) and not key.is_array):
        return np.zeros(len(values), np.bool_) if known is None else ~known
    counts = list_counts(values) if key.is_array else np.ones(len(values), np.int64) if known is None else known.astype(np.int64)
    return counts == 0 if isinstance(test, Empty) else within(counts, test.within)


def holds(values: pa.Array, test: ValueTest) -> Mask:
    """Mask of the single values for which a test holds, shape (len(values),); null never does."""
    if isinstance(test, InBox | InCircle):
        return _and(_near(*_places(values), test), values)
    if isinstance(test, Within):
        return _and(within(numbers(values), test), values)
    if isinstance(test, Words):
        return _have_words(values, test)
    if isinstance(test, NoneOf):
        return _and(~_one_of(values, test.values), values)
    return _and(_one_of(values, test.values), values)


def within(found: NDArray[Any], test: Within) -> Mask:
    """Mask of the numbers that lie within, shape (len(found),); NaN never does."""
    mask = found == found if test.low is None else (found >= test.low) if test.includes_low else (found > test.low)  # noqa: PLR0124 - NaN
    if test.high is not None:
        mask &= (found <= test.high) if test.includes_high else (found < test.high)
    return np.asarray(mask, np.bool_)


def _and(mask: Mask, values: pa.Array) -> Mask:
    known = valid(values)
    return mask if known is None else mask & known


def _one_of(values: pa.Array, wanted: tuple[Any, ...]) -> Mask:
    if pa.types.is_struct(values.type):
        lat, lon = _places(values)
        return _any(len(values), [(lat == each[0]) & (lon == each[1]) for each in wanted])
    if is_text(values):
        if len(wanted) > _FEW:
            return as_mask(pc.is_in(values, value_set=pa.array(wanted, values.type)))
        return _any(len(values), [as_mask(pc.equal(values, pa.scalar(each, values.type))) for each in wanted])
    found = numbers(values)
    if len(wanted) > _FEW:
        return np.isin(found, np.array(wanted, found.dtype))
    return _any(len(values), [found == found.dtype.type(each) for each in wanted])


def _any(rows: int, masks: list[Any]) -> Mask:
    out = np.zeros(rows, np.bool_)
    for mask in masks:
        out |= mask
    return out


def _have_words(values: pa.Array, test: Words) -> Mask:
    """Only texts that hold the letters of a word at all are cut into words."""
    lowered = pc.utf8_lower(values)
    held = [as_mask(pc.match_substring(lowered, word)) for word in test.words]
    rows = np.flatnonzero(np.logical_and.reduce(held) if test.every else np.logical_or.reduce(held))
    words = words_of(lowered.take(pa.array(rows)))
    flat, owners = words.flatten(), parents(words)
    mask = np.zeros(len(values), np.bool_)
    hits = np.zeros(len(rows), np.int64)
    for word in test.words:
        has = np.zeros(len(rows), np.bool_)
        has[owners[as_mask(pc.equal(flat, word))]] = True
        hits += has
    mask[rows[hits >= (len(test.words) if test.every else 1)]] = True
    return mask


def _places(values: pa.StructArray) -> tuple[NDArray[Any], NDArray[Any]]:
    return numbers(pc.struct_field(values, "lat")), numbers(pc.struct_field(values, "lon"))


def _near(lat: NDArray[Any], lon: NDArray[Any], test: InBox | InCircle) -> Mask:
    if isinstance(test, InBox):
        inside = (lat >= test.south) & (lat <= test.north)
        if test.west <= test.east:
            return np.asarray(inside & (lon >= test.west) & (lon <= test.east), np.bool_)
        return np.asarray(inside & ((lon >= test.west) | (lon <= test.east)), np.bool_)
    # a degree of latitude is a distance that no longitude makes shorter: most places need no trigonometry
    reach = np.degrees(test.radius_metres / EARTH_RADIUS_METRES) * (1 + 1e-9) + 1e-9
    rows = np.flatnonzero(np.abs(lat - test.lat) <= reach)
    mask = np.zeros(len(lat), np.bool_)
    mask[rows[metres(lat[rows], lon[rows], test.lat, test.lon) <= test.radius_metres]] = True
    return mask


def metres(lat: NDArray[Any], lon: NDArray[Any], to_lat: float, to_lon: float) -> NDArray[np.float64]:
    """Great-circle distances of places in degrees, shape (n,), to one place, in metres (haversine formula)."""
    phi, to_phi = np.radians(lat), np.radians(to_lat)
    half = np.sin((phi - to_phi) / 2) ** 2 + np.cos(phi) * np.cos(to_phi) * np.sin(np.radians(lon - to_lon) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_METRES * np.arcsin(np.sqrt(np.minimum(half, 1.0))), np.float64)
