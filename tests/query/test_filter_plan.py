"""The planner: cheap where few rows pass, never exact where many do, never without the bitmap where few do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from query.filter_estimate import Estimate
from query.filter_plan import GATHER_COST, POST_FILTER_SHARE, FilterPlan, plan_filter, probed_lists

ROWS = st.integers(1, 10**8)
LIMITS = st.integers(1, 1000)
ORDER = ("exact", "filtered_ivf", "post_filter")


@st.composite
def indexes(draw: st.DrawFn) -> tuple[int, int, int]:
    rows = draw(ROWS)
    nlist = draw(st.integers(1, min(rows, 65_536)))
    return rows, nlist, draw(st.integers(1, nlist))


@st.composite
def estimates(draw: st.DrawFn, rows: int) -> Estimate:
    lower, expected, upper = sorted(draw(st.lists(st.integers(0, rows), min_size=3, max_size=3)))
    return Estimate(lower, expected, upper)


@given(indexes(), st.data(), LIMITS)
def test_a_plan_is_never_post_filter_where_few_rows_pass_and_never_exact_where_many_do(
    index: tuple[int, int, int], data: st.DataObject, limit: int
) -> None:
    rows, nlist, nprobe = index
    passing = data.draw(estimates(rows))
    plan = plan_filter(passing, rows, nlist, nprobe, limit)
    if passing.lower < POST_FILTER_SHARE * rows:
        assert plan.way != "post_filter"
    if passing.upper * GATHER_COST > nlist + rows:
        assert plan.way != "exact"
    if plan.way == "exact":
        assert (plan.nprobe, plan.fetch) == (0, limit)
    else:
        assert nprobe <= plan.nprobe <= nlist
        assert plan.fetch == limit if plan.way == "filtered_ivf" else min(limit, rows) <= plan.fetch <= rows


@given(indexes(), st.data(), LIMITS)
def test_the_more_rows_pass_the_further_down_the_order_and_the_fewer_lists(index: tuple[int, int, int], data: st.DataObject, limit: int) -> None:
    rows, nlist, nprobe = index
    fewer, more = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    plans = [plan_filter(Estimate.exact(count), rows, nlist, nprobe, limit) for count in (fewer, more)]
    assert ORDER.index(plans[0].way) <= ORDER.index(plans[1].way)
    assert probed_lists(fewer, rows, nlist, nprobe, limit) >= probed_lists(more, rows, nlist, nprobe, limit)


@given(indexes(), st.data(), LIMITS)
def test_fewer_hits_never_take_more_lists(index: tuple[int, int, int], data: st.DataObject, limit: int) -> None:
    rows, nlist, nprobe = index
    passing = data.draw(st.integers(1, rows))
    assert probed_lists(passing, rows, nlist, nprobe, limit) <= probed_lists(passing, rows, nlist, nprobe, limit + 1)


def test_a_million_rows_are_searched_in_the_way_that_their_share_asks_for() -> None:
    def way(share: float) -> FilterPlan:
        return plan_filter(Estimate.exact(round(share * 1_000_000)), 1_000_000, 4096, 64, 10)

    assert [way(share).way for share in (1e-5, 1e-3, 0.1, 0.5, 0.99)] == ["exact", "exact", "filtered_ivf", "filtered_ivf", "post_filter"]
    assert way(0.1).nprobe > way(0.5).nprobe > 64
    assert way(0.99).fetch == 23
    unknown = plan_filter(Estimate.unknown(1_000_000), 1_000_000, 4096, 64, 10)
    assert unknown.way == "filtered_ivf", "what is not known is not taken for certain"
    assert plan_filter(Estimate.exact(900), 1000, 0, 0, 10).way == "exact", "there are no lists"
