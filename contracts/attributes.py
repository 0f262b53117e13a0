"""Typed attributes: what a collection's schema says of them, and how a value becomes one.

Takes: JSON values. Gives: typed values and their Arrow types. Owns: the type names and coercion rules (docs/formats/attributes.md).
Never: guesses: a value of the wrong type is an error that names the attribute; an unknown attribute is kept in ``extra``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from contracts import canonical_json

EXTRA = "extra"
"""Column of the attributes struct that holds undeclared attributes as canonical JSON."""

MAX_ATTRIBUTES_BYTES = 256 * 1024
"""JSON of an item's attributes, of a patch, and of what patches have made of ``extra``."""

_GEO = pa.struct([pa.field("lat", pa.float64()), pa.field("lon", pa.float64())])
ARROW_TYPES: dict[str, pa.DataType] = {
    "keyword": pa.utf8(),
    "bool": pa.bool_(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "datetime": pa.timestamp("us", tz="UTC"),
    "geo": _GEO,
    "text": pa.utf8(),
}
"""Attribute types; each may be an array by a ``[]`` suffix."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIN_TIME_US = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
MAX_TIME_US = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""Times that can be stored and shown: years 1 to 9999, UTC, in microseconds since 1970."""

TYPE_PATTERN = re.compile("(" + "|".join(ARROW_TYPES) + r")(\[\])?\Z")


def arrow_type(attribute_type: str) -> pa.DataType:
    """Arrow type of an attribute type such as ``integer`` or ``keyword[]``."""
    match = TYPE_PATTERN.match(attribute_type)
    if not match:
        raise ValueError(f"{attribute_type!r} is not an attribute type")
    base = ARROW_TYPES[match[1]]
    return pa.list_(base) if match[2] else base


def struct_type(schema: Mapping[str, str]) -> pa.StructType:
    """Arrow struct of a collection's attributes with the ``extra`` column last."""
    fields = [pa.field(name, arrow_type(kind)) for name, kind in sorted(schema.items())]
    return pa.struct([*fields, pa.field(EXTRA, pa.utf8())])


def parse_time(value: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time; ValueError where it is none."""
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]", value):
        raise ValueError("not an RFC 3339 time")
    parsed = datetime.fromisoformat(value.replace("z", "Z").replace("t", "T"))
    if parsed.tzinfo is None:
        raise ValueError("the time has no zone; end it with Z or +hh:mm")
    try:
        return (parsed.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)  # whole numbers: seconds as float lose microseconds
    except OverflowError:
        raise ValueError("the time lies outside the years 1 to 9999") from None


def _keyword(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("not a string")
    return str(value)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def _bool(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _integer(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError("not a whole number of 64 bits")
    return value


def _float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1.7e308:  # also NaN
        raise ValueError("not a number")
    return float(value)


def _datetime(value: Any) -> Any:
    if isinstance(value, str):
        return parse_time(value)
    if isinstance(value, datetime):  # of an Arrow struct
        return parse_time(value.isoformat())
    stamp = round(_float(value) * 1_000_000) if abs(_float(value)) < 1e12 else MAX_TIME_US + 1
    if not MIN_TIME_US <= stamp <= MAX_TIME_US:
        raise ValueError("not a time in seconds since 1970, between the years 1 and 9999")
    return stamp


def _geo(value: Any) -> Any:
    if not isinstance(value, dict) or set(value) != {"lat", "lon"}:
        raise ValueError('not {"lat": ..., "lon": ...}')
    point = {key: _float(value[key]) for key in ("lat", "lon")}
    if abs(point["lat"]) > 90 or abs(point["lon"]) > 180:
        raise ValueError("latitude or longitude out of range")
    return point


_COERCIONS: dict[str, Callable[[Any], Any]] = {
    "keyword": _keyword,
    "bool": _bool,
    "integer": _integer,
    "float": _float,
    "datetime": _datetime,
    "geo": _geo,
    "text": _text,
}


def coerce(value: Any, attribute_type: str) -> Any:
    """Value as its type stores it (datetimes as microseconds); ValueError with what is wrong, without the value."""
    if value is None:
        return None
    if attribute_type.endswith("[]"):
        items = value if isinstance(value, list) else [value]
        return [_COERCIONS[attribute_type[:-2]](item) for item in items]
    return _COERCIONS[attribute_type](value)


def coerce_all(values: Mapping[str, Any], schema: Mapping[str, str]) -> dict[str, Any]:
    """Split attributes into declared columns and ``extra``.

    Returns
    -------
    dict
        One entry per column of `struct_type`; ``extra`` is canonical JSON or None.

    Raises
    ------
    ValueError
        A declared attribute has the wrong type; the message names it.
    """
    out: dict[str, Any] = {}
    for name, kind in schema.items():
        try:
            out[name] = coerce(values.get(name), kind)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"attribute {name} ({kind}): {error}") from None
    out[EXTRA] = _extra({name: value for name, value in values.items() if name not in schema})
    return out


def _extra(rest: Mapping[str, Any]) -> str | None:
    """Canonical JSON of undeclared attributes; ValueError where Arrow brought what JSON cannot hold."""
    written: list[bytes] = []
    for name, value in sorted(rest.items()):
        try:
            written.append(canonical_json.dump(name) + b":" + canonical_json.dump(_show(value)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"attribute {name[:80]}: {error}") from None
    size = sum(map(len, written)) + len(written) + 1
    if size > MAX_ATTRIBUTES_BYTES:
        raise ValueError(f"the undeclared attributes are {size} bytes of JSON, more than {MAX_ATTRIBUTES_BYTES}")
    return f"{{{b','.join(written).decode('utf-8')}}}" if written else None


def to_json(stored: Mapping[str, Any] | None, schema: Mapping[str, str]) -> dict[str, Any]:
    """Attributes as a user sees them: nulls left out, ``extra`` spread, datetimes as RFC 3339 with Z."""
    out: dict[str, Any] = {}
    for name in schema:
        value = (stored or {}).get(name)
        if value is not None:
            out[name] = [_show(item) for item in value] if isinstance(value, list) else _show(value)
    if stored and stored.get(EXTRA):
        out.update(canonical_json.load(stored[EXTRA]))
    return out


def _show(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat().replace("+00:00", "Z")
