"""How a filtered search is made: by distances of the few rows that pass, by lists with a bitmap, or by dropping what does not pass afterwards.

Takes: plain numbers. Gives: `FilterPlan`. Owns: the thresholds. Never: looks at rows, vectors or a clock.

The three ways are those of every engine with filters. Qdrant compares the points that a payload index names where a filter is strict, and walks its
graph with the filter inside otherwise (https://qdrant.tech/articles/filterable-hnsw/); Milvus and pgvector choose between exact and approximate scans
likewise (measured against each other in https://arxiv.org/abs/2602.11443). The unit of cost is the comparison of one code of an inverted list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from query.filter_estimate import Estimate

GATHER_COST = 10
"""Codes that are compared in the time of one exact distance of a gathered row, whose vector is some hundred bytes at a random place."""
MATCHES_PER_HIT = 4
"""Rows that pass, in the lists that are probed, for every hit that is asked for: below it lists run empty before the hits are found."""
SETTLE_BELOW = 0.98
"""Share of live rows that pass below which a search widens until its answer settles (query/settling.py): what is left out may just lie near."""
POST_FILTER_SHARE = 0.9
"""Share of rows that certainly pass from which on the bitmap is left away: its test of every code would drop less than one code in ten."""
POST_FILTER_SLACK = 1.2
"""Hits beyond limit / share that are fetched before the others are dropped: rows near a query pass a little less often than all rows do."""
POST_FILTER_EXTRA = 10
"""Hits that are fetched on top, for small limits."""


@dataclass(frozen=True, slots=True)
class FilterPlan:
    """What to do.

    Parameters
    ----------
    way : {"exact", "filtered_ivf", "post_filter"}
        ``exact``: gather the rows that pass and compute their distances. ``filtered_ivf``: search lists with a bitmap. ``post_filter``: search lists
        without, and drop what does not pass; where fewer than the limit are left, search again as ``filtered_ivf``.
    nprobe : int
        Lists to probe; 0 for ``exact``.
    fetch : int
        Hits to take from the search: the limit, or more of them for ``post_filter``.
    """

    way: Literal["exact", "filtered_ivf", "post_filter"]
    nprobe: int
    fetch: int


def plan_filter(passing: Estimate, rows: int, nlist: int, nprobe: int, limit: int) -> FilterPlan:
    """Choose the cheapest way that keeps recall.

    Parameters
    ----------
    passing : Estimate
        Rows that may be found: they pass the filter and are live (`Estimate.among`). ``Estimate.exact(count)`` where the mask was made already.
    rows : int
        Rows behind the lists, or of the flat matrix.
    nlist : int
        Inverted lists; 0 where there are none, which leaves ``exact`` alone.
    nprobe : int
        Lists that a search without filter probes for the recall that is wanted.
    limit : int
        Hits that are wanted, at least 1.

    Returns
    -------
    FilterPlan
        The more rows pass, the further down the order exact, filtered_ivf, post_filter.
    """
    if nlist == 0 or passing.upper == 0:
        return FilterPlan("exact", 0, limit)
    probed = probed_lists(passing.expected, rows, nlist, nprobe, limit)
    if passing.upper * GATHER_COST <= nlist + rows * probed / nlist:
        return FilterPlan("exact", 0, limit)
    fetch = min(rows, math.ceil(limit * POST_FILTER_SLACK * rows / max(passing.lower, 1)) + POST_FILTER_EXTRA)
    if passing.lower >= POST_FILTER_SHARE * rows:
        return FilterPlan("post_filter", probed, fetch)
    return FilterPlan("filtered_ivf", probed, limit)


def probed_lists(expected: int, rows: int, nlist: int, nprobe: int, limit: int) -> int:
    """Lists to probe first for the closest of `expected` rows among `rows`: never fewer than without a filter, never more than there are.

    The closest k of the rows that pass are about the closest k / share of all, so the lists grow by 1 / share. That is where a search begins: how far
    the rows that pass lie from a query, no count of them tells.
    """
    expected = max(1, min(expected, rows))
    widened = nprobe * rows / expected
    enough = MATCHES_PER_HIT * limit * nlist / expected
    return min(nlist, max(nprobe, math.ceil(widened), math.ceil(enough)))
