"""Canonical JSON: one byte string per value, and a reader that refuses what a careless parser lets through.

Takes: values, bytes. Gives: bytes, values. Owns: sorted keys, no white space, UTF-8, no NaN, no duplicate keys.
Never: trusts depth or size.
"""

from __future__ import annotations

import json
from typing import Any

MAX_JSON_BYTES = 64 * 1024 * 1024


def dump(value: Any) -> bytes:
    """Encode to canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def load(data: bytes | str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Decode JSON strictly.

    Raises
    ------
    ValueError
        Too large, not UTF-8, not JSON, a key twice, NaN or Infinity, or nested too deep.
    """
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes of JSON, more than {max_bytes}")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("JSON is nested too deep") from None
