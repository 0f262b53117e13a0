"""The compaction policy alone: it comes to an end, keeps its bounds, and leaves few pieces whatever comes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.compaction_policy import SMALL_BYTES, Compaction, CompactionRules, Piece, choose, first_to_merge
from tests.examples import examples

MIB = 1024 * 1024
RULES = CompactionRules(fan_in=4, most_bytes=64 * MIB, dead_share=0.2)
HOUR_US = 3600 * 1_000_000

pieces = st.lists(
    st.builds(
        lambda size, rows, dead, low, spread: Piece(size, rows, min(rows, dead), *((low, low + spread) if rows else (None, None))),
        size=st.integers(1, 200 * MIB),
        rows=st.integers(0, 1000),
        dead=st.integers(0, 1000),
        low=st.integers(0, 100 * HOUR_US),
        spread=st.integers(0, 10 * HOUR_US),
    ),
    max_size=40,
)
rules = st.builds(
    CompactionRules,
    fan_in=st.integers(2, 10),
    most_bytes=st.integers(MIB, 300 * MIB),
    dead_share=st.floats(0.05, 1),
    retention_us=st.none() | st.integers(HOUR_US, 200 * HOUR_US),
)
NOW_US = 60 * HOUR_US


def applied(found: list[Piece], plan: Compaction, rules: CompactionRules, now_us: int) -> list[Piece]:
    """Pieces after a compaction that drops what is dead, and rows that have expired (those at the lower end of the times)."""
    inputs = found[plan.first : plan.end]
    rows = sum(piece.rows - piece.dead_rows for piece in inputs)
    size = max(1, int(sum(piece.size_bytes * (1 - piece.dead_share) for piece in inputs)))
    low = min((piece.min_event_time_us for piece in inputs if piece.min_event_time_us is not None), default=None)
    high = max((piece.max_event_time_us for piece in inputs if piece.max_event_time_us is not None), default=None)
    if rules.retention_us is not None and low is not None and high is not None:
        low = max(low, now_us - rules.retention_us + 1)
        rows = 0 if low > high else rows
    new = Piece(size, rows, 0, low, high) if rows else Piece(1)
    return [*found[: plan.first], new, *found[plan.end :]]


@settings(deadline=None, max_examples=examples(200))
@given(pieces, rules)
def test_it_comes_to_an_end_and_never_reads_more_than_the_bound_at_once(found: list[Piece], rules: CompactionRules) -> None:
    for _ in range(200):
        plan = choose(found, rules, NOW_US)
        if plan is None:
            break
        assert 0 <= plan.first < plan.end <= len(found)
        inputs = found[plan.first : plan.end]
        assert len(inputs) == 1 or sum(piece.size_bytes for piece in inputs) <= rules.most_bytes
        if plan.reason == "tier":
            assert len(inputs) >= 2 and 2 * max(piece.size_bytes for piece in inputs) <= sum(piece.size_bytes for piece in inputs)
        found = applied(found, plan, rules, NOW_US)
    else:
        raise AssertionError("no end")
    if rules.retention_us is not None:
        assert not [piece for piece in found if piece.max_event_time_us is not None and piece.max_event_time_us <= NOW_US - rules.retention_us]
    assert not [piece for piece in found if piece.size_bytes > SMALL_BYTES and piece.dead_rows and piece.dead_share >= rules.dead_share]


@settings(deadline=None, max_examples=examples(30))
@given(st.lists(st.integers(1, 3 * MIB), min_size=100, max_size=400), st.integers(2, 8))
def test_a_stream_of_commits_leaves_few_pieces_and_each_byte_is_written_a_few_times(sizes: list[int], fan_in: int) -> None:
    rules = CompactionRules(fan_in, 512 * MIB, 0.2)
    found: list[Piece] = []
    written = 0
    for size in sizes:
        found.append(Piece(size, rows=10, min_event_time_us=0, max_event_time_us=0))
        while (plan := choose(found, rules, NOW_US)) is not None:
            written += sum(piece.size_bytes for piece in found[plan.first : plan.end])
            found = applied(found, plan, rules, NOW_US)
    assert len(found) <= fan_in * 12 and written <= 10 * sum(sizes)


def test_sizes_alike_are_merged_and_a_large_one_is_not_dragged_along() -> None:
    small, large = Piece(1000, 10), Piece(40 * MIB, 1000)
    assert choose([large, small, small, small], RULES, 0) is None
    assert choose([large, small, small, small, small], RULES, 0) == Compaction(1, 5, "tier")
    assert choose([small, small, large, small, small], RULES, 0) is None


def test_what_is_purged_goes_first_and_dead_rows_go_where_they_are_too_many() -> None:
    clean, dead = Piece(10 * MIB, 100), Piece(10 * MIB, 100, 20)
    assert choose([clean, dead], RULES, 0) == Compaction(1, 2, "dead")
    assert choose([replace(clean, is_purged=True), dead], RULES, 0) == Compaction(0, 1, "purge")
    assert choose([replace(dead, dead_rows=19)], RULES, 0) is None
    assert choose([Piece(1000, 100, 49)], RULES, 0) is None and choose([Piece(1000, 100, 50)], RULES, 0) == Compaction(0, 1, "dead")


def test_windows_are_kept_apart_until_late_rows_make_too_many_pieces() -> None:
    rules = replace(RULES, retention_us=80 * HOUR_US)
    one, next_window = Piece(1000, 10, 0, HOUR_US, HOUR_US), Piece(1000, 10, 0, 11 * HOUR_US, 11 * HOUR_US)
    late = replace(one, size_bytes=999)
    assert choose([one, one, next_window, next_window], rules, 0) is None
    assert choose([one, one, next_window, late, next_window, late], rules, 0) == Compaction(2, 6, "tier")


def test_small_deltas_are_merged_and_a_large_old_one_waits_for_a_quarter_of_its_size() -> None:
    assert first_to_merge([]) == 0 and first_to_merge([100] * 9) == 0
    assert first_to_merge([100 * MIB, 100, 100]) == 1
    assert first_to_merge([4 * MIB, MIB]) == 0 and first_to_merge([4 * MIB + 1, MIB]) == 2 and first_to_merge([4 * MIB, MIB, 100]) == 2
    assert first_to_merge([MIB] * 50) == 0 and first_to_merge([200_000, 60_000]) == 0
