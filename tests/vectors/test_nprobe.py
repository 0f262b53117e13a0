"""The number of lists follows from what segments measured."""

from __future__ import annotations

import pytest

from vectors.nprobe import UNMEASURED_LEAST, MeasuredRecall, choose_nprobe

SMALL = {1: 0.5, 2: 0.7, 4: 0.9, 8: 0.97}
LARGE = {1: 0.3, 2: 0.5, 4: 0.7, 8: 0.9, 16: 0.98}


def test_the_smallest_number_that_reaches_the_target_is_chosen() -> None:
    assert choose_nprobe(MeasuredRecall.of([(100, SMALL)]), 0.9, 64) == 4
    assert choose_nprobe(MeasuredRecall.of([(100, SMALL)]), 0.5, 64) == 1


def test_between_two_measured_numbers_it_is_interpolated() -> None:
    assert choose_nprobe(MeasuredRecall.of([(100, LARGE)]), 0.79, 64) == 6


def test_segments_count_by_their_rows_and_a_missing_number_as_the_next_lower_one() -> None:
    assert choose_nprobe(MeasuredRecall.of([(1, SMALL), (999, LARGE)]), 0.9, 64) == 8
    assert choose_nprobe(MeasuredRecall.of([(1000, SMALL), (1000, LARGE)]), 0.975, 64) == 16


def test_a_recall_that_nothing_reaches_takes_all_that_was_measured_and_never_more_lists_than_there_are() -> None:
    assert choose_nprobe(MeasuredRecall.of([(100, SMALL)]), 0.99, 64) == 8
    assert choose_nprobe(MeasuredRecall.of([(100, LARGE)]), 0.98, 10) == 10


def test_where_more_lists_gain_nothing_no_more_are_probed() -> None:
    """What the codes lose no list gives back: without this a target of 0.95 would cost sixteen times as much here, and find the same."""
    flat = {1: 0.82, 2: 0.897, 4: 0.9025, 8: 0.9025, 16: 0.9025, 32: 0.9025, 64: 0.9025}
    assert choose_nprobe(MeasuredRecall.of([(100, flat)]), 0.95, 64) == 4
    assert choose_nprobe(MeasuredRecall.of([(100, flat)]), 0.9, 64) == 4
    assert choose_nprobe(MeasuredRecall.of([(100, {1: 0.9, 2: 0.89})]), 0.95, 64) == 1


def test_without_measurements_a_share_of_the_lists_is_probed() -> None:
    assert choose_nprobe(MeasuredRecall.of([]), 0.95, 4096) == 64
    assert choose_nprobe(MeasuredRecall.of([(100, {})]), 0.95, 16) == UNMEASURED_LEAST
    assert choose_nprobe(MeasuredRecall.of([]), 0.95, 4) == 4


def test_recall_is_a_mean_at_the_largest_measured_number_in_which_many_rows_in_one_table_count_for_more_than_in_several() -> None:
    assert MeasuredRecall.of([(300, SMALL), (100, LARGE)]).at(5) == pytest.approx((9 * 0.9 + 0.7) / 10)
    assert MeasuredRecall.of([(1000, SMALL), *[(10, LARGE)] * 100]).at(4) == pytest.approx((100 * 0.9 + 0.7) / 101)
