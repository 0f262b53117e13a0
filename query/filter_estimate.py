"""How many rows a filter matches, told without evaluating it: bounds that always hold, and what to expect.

Takes: estimates of conditions. Gives: estimates of their combinations. Owns: the arithmetic. Never: looks at rows.

Expectations take conditions for independent, as database planners do (Selinger et al., "Access path selection in a relational database management
system", SIGMOD 1979); bounds are those of sets, in the manner of Qdrant's `query_estimator`
(https://github.com/qdrant/qdrant/blob/master/lib/segment/src/index/query_estimator.rs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """Rows that match: at least `lower`, at most `upper`, about `expected`; `lower <= expected <= upper`."""

    lower: int
    expected: int
    upper: int

    @classmethod
    def exact(cls, rows: int) -> Estimate:
        """An estimate that is the answer."""
        return cls(rows, rows, rows)

    @classmethod
    def unknown(cls, rows: int) -> Estimate:
        """Nothing is known of a condition over so many rows: half of them are expected, as Qdrant does."""
        return cls(0, rows // 2, rows)

    def inverted(self, rows: int) -> Estimate:
        """Rows, of so many, that do not match."""
        return Estimate(rows - self.upper, rows - self.expected, rows - self.lower)

    def among(self, eligible: int, rows: int) -> Estimate:
        """The same where only some of the rows may be found: those that live are taken for a fair sample of all."""
        upper = min(self.upper, eligible)
        lower = max(0, self.lower - (rows - eligible))
        return Estimate(lower, min(upper, max(lower, round(self.expected * eligible / rows) if rows else 0)), upper)


def all_of(estimates: Sequence[Estimate], rows: int) -> Estimate:
    """Rows, of so many, that match every one; all where there are none."""
    lower = max(0, rows - sum(rows - each.lower for each in estimates))
    upper = min((each.upper for each in estimates), default=rows)
    share = math.prod(each.expected / rows for each in estimates) if rows else 0.0
    return Estimate(lower, _between(lower, share * rows, upper), upper)


def any_of(estimates: Sequence[Estimate], rows: int) -> Estimate:
    """Rows, of so many, that match at least one; none where there are none."""
    lower = max((each.lower for each in estimates), default=0)
    upper = min(rows, sum(each.upper for each in estimates))
    missed = math.prod(1 - each.expected / rows for each in estimates) if rows else 1.0
    return Estimate(lower, _between(lower, (1 - missed) * rows, upper), upper)


def at_least(count: int, estimates: Sequence[Estimate], rows: int) -> Estimate:
    """Rows, of so many, that match at least `count`.

    By counting: the matches of all conditions together are at most ``sum(upper)``, and each row needs `count` of them.
    """
    if count <= 0:
        return Estimate.exact(rows)
    if count > len(estimates):
        return Estimate.exact(0)
    upper = min(rows, sum(each.upper for each in estimates) // count)
    lower = max(0, math.ceil((sum(each.lower for each in estimates) - (count - 1) * rows) / (len(estimates) - count + 1)))
    chances = [1.0] + [0.0] * len(estimates)  # of so many matches in a row, conditions being independent
    for each in estimates:
        share = each.expected / rows if rows else 0.0
        chances = [before * (1 - share) + (chances[at - 1] * share if at else 0.0) for at, before in enumerate(chances)]
    return Estimate(lower, _between(lower, sum(chances[count:]) * rows, upper), upper)


def _between(lower: int, value: float, upper: int) -> int:
    return max(lower, min(upper, round(value)))
