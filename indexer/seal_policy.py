"""When a growing segment is sealed (pure).

Takes: its size and age. Gives: yes or no. Owns: the three limits. Never: looks at freshness: the tail gives that, not small commits.
"""

from __future__ import annotations

from contracts.settings import Settings


def should_seal(rows: int, size_bytes: int, age_seconds: float, settings: Settings) -> bool:
    """True when a growing segment has reached its rows, bytes or age; an empty one (``age_seconds`` 0) never has."""
    return rows >= settings.seal_rows or size_bytes >= settings.seal_bytes or age_seconds >= settings.seal_seconds
