"""The chain rule against an oracle of six lines, and what follows from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contracts.chain import AcceptedSpan, BatchSpan, Chain

ME = ("inc", "topic")
spans = st.builds(BatchSpan, st.sampled_from(["inc", "other"]), st.sampled_from(["topic", "remade"]), st.integers(0, 30), st.integers(0, 30))
logs = st.lists(spans | st.builds(BatchSpan, st.just("inc"), st.just("topic"), st.integers(0, 30), st.integers(0, 30)), max_size=40)


def oracle(log: list[BatchSpan], expected: int) -> tuple[list[int], int]:
    rows: list[int] = []
    for span in log:
        if (span.incarnation, span.topic_id) == ME and span.start_offset <= expected < span.next_offset:
            rows += range(expected, span.next_offset)
            expected = span.next_offset
    return rows, expected


@given(logs, st.integers(0, 30))
def test_the_chain_accepts_exactly_what_the_rule_says(log: list[BatchSpan], expected: int) -> None:
    chain = Chain(*ME, expected)
    accepted = [found for span in log if (found := chain.accept(span)) is not None]
    rows, end = oracle(log, expected)
    assert [offset for span in accepted for offset in range(span.start_offset, span.next_offset)] == rows
    assert chain.expected == end


@given(logs, st.integers(0, 30), st.data())
def test_duplicates_anywhere_later_in_the_log_change_nothing(log: list[BatchSpan], expected: int, data: st.DataObject) -> None:
    again = list(log)
    for _ in range(data.draw(st.integers(0, 5)) if log else 0):
        first = data.draw(st.integers(0, len(again) - 1))
        again.insert(data.draw(st.integers(first + 1, len(again))), again[first])
    rows, _ = oracle(again, expected)
    assert rows == list(range(expected, expected + len(rows)))
    plain, _ = oracle(log, expected)
    chain = Chain(*ME, expected)
    found = [offset for span in again if (a := chain.accept(span)) for offset in range(a.start_offset, a.next_offset)]
    assert found == rows and set(plain) <= set(rows) and len(set(found)) == len(found)


@given(logs, st.integers(0, 30), st.integers(0, 40))
def test_a_reader_that_starts_in_the_middle_with_the_checkpoint_sees_the_rest_alike(log: list[BatchSpan], expected: int, cut: int) -> None:
    whole = Chain(*ME, expected)
    results = [whole.accept(span) for span in log]
    before = Chain(*ME, expected)
    for span in log[:cut]:
        before.accept(span)
    after = Chain(*ME, before.expected)
    assert [after.accept(span) for span in log[cut:]] == results[cut:]


def test_a_batch_that_overlaps_counts_only_from_the_expected_offset() -> None:
    chain = Chain(*ME, 5)
    assert chain.accept(BatchSpan("inc", "topic", 3, 8)) == AcceptedSpan(5, 8)
    assert chain.accept(BatchSpan("inc", "topic", 9, 12)) is None
    assert chain.accept(BatchSpan("inc", "topic", 3, 8)) is None
    assert chain.expected == 8
