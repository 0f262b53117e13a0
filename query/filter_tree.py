"""The filter as a typed tree: what `query/filters.py` reads and what everything else evaluates.

Takes: nothing. Gives: groups, conditions, keys, tests. Owns: their meaning in one sentence each. Never: knows JSON of a request or rows.

A condition is a test of a key. A key has values: none where the row has no value (missing and null are the same for a declared attribute), one, or as
many as the array has elements. A test of values holds where it holds for any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Step = str | int | None
"""Of a path into undeclared attributes: a name, an element's number, or None for every element."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a condition looks at.

    Parameters
    ----------
    name : str
        As the request wrote it.
    source : {"attribute", "row", "extra"}
        A declared attribute, a column that every row has, or a path into the JSON of undeclared attributes.
    kind : str
        Type of a single value (`contracts.attributes`), empty for ``extra``.
    is_array : bool
        Whether the column holds arrays.
    path : tuple of Step
        For ``extra``.
    """

    name: str
    source: Literal["attribute", "row", "extra"]
    kind: str = ""
    is_array: bool = False
    path: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The value is one of these."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class NoneOf:
    """The value is none of these."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Within:
    """The value lies between two bounds; None is no bound. Of undeclared attributes, `is_time` compares strings as times."""

    low: Any = None
    high: Any = None
    includes_low: bool = True
    includes_high: bool = True
    is_time: bool = False

    def holds(self, value: Any) -> bool:
        """Whether one value lies within."""
        if value != value or (self.low is not None and (value < self.low or (value == self.low and not self.includes_low))):  # noqa: PLR0124 - NaN
            return False
        return self.high is None or value < self.high or (value == self.high and self.includes_high)


@dataclass(frozen=True, slots=True)
class Words:
    """The text has all of these words (or one of them); words are runs of letters and digits, in lower case."""

    words: tuple[str, ...]
    every: bool = True


@dataclass(frozen=True, slots=True)
class InBox:
    """The place lies in a box of degrees, borders included; one whose west is greater than its east crosses the 180th meridian."""

    south: float
    west: float
    north: float
    east: float


@dataclass(frozen=True, slots=True)
class InCircle:
    """The place is at most so many metres from a point, over the earth as a ball."""

    lat: float
    lon: float
    radius_metres: float


@dataclass(frozen=True, slots=True)
class Count:
    """The number of values lies within."""

    within: Within


@dataclass(frozen=True, slots=True)
class Empty:
    """There is no value: missing, null, or an array without elements."""


@dataclass(frozen=True, slots=True)
class Null:
    """The value is null; a declared attribute that is missing is null too, an undeclared one is not."""


ValueTest = AnyOf | NoneOf | Within | Words | InBox | InCircle
"""Tests that hold where any value passes."""
Test = ValueTest | Count | Empty | Null


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of a key."""

    key: Key
    test: Test


@dataclass(frozen=True, slots=True)
class HasId:
    """The row's id is one of these."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """All of `must`, none of `must_not`, one of `should` where there are any, and `min_count` of `min_should` where there are any."""

    must: tuple[Node, ...] = ()
    should: tuple[Node, ...] = ()
    must_not: tuple[Node, ...] = ()
    min_should: tuple[Node, ...] = ()
    min_count: int = 0


Node = Condition | HasId | Filter
