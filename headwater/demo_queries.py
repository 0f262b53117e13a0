"""Everyday queries for the sample media, each with the category its answers should come from.

Takes: nothing. Gives: `DEMO_QUERIES`. Owns: what the demo searches for and checks.
Never: reaches an encoder; it only sees the queries as a user would type them.
"""

from __future__ import annotations

DEMO_QUERIES: tuple[tuple[str, str], ...] = (
    ("a dog", "animals"),
    ("a bird", "animals"),
    ("a house", "buildings"),
    ("a light bulb", "electronics"),
    ("fresh fruit", "food"),
    ("a slice of pizza", "food"),
    ("a musical instrument", "leisure"),
    ("a flower", "plants"),
    ("a planet in space", "space"),
    ("a hammer and other tools", "tools"),
    ("a car on the road", "vehicles"),
    ("an airplane", "vehicles"),
)
"""(query, category) with the categories of `examples/media/captions.csv`.

Chosen as words for common things, at least one per category, not by their results: two of them find nothing by pixels alone.
``a planet in space`` has only four pictures to find, so precision@5 cannot reach 1.0.
"""
