"""The frame's statistics."""

from __future__ import annotations

import numpy as np
import pytest

from bench.intervals import abba, paired_ratio, percentile, ratio


def test_the_order_is_abba_and_both_are_measured_equally_often() -> None:
    assert abba(4) == "ABBAABBA"
    assert abba(3) == "ABBAAB"
    for pairs in (1, 2, 5, 150):
        assert abba(pairs).count("A") == abba(pairs).count("B") == pairs


def test_a_drift_of_the_machine_meets_a_and_b_alike() -> None:
    times = np.arange(40.0)  # a machine that slows down steadily
    order = np.array(list(abba(20)))
    assert times[order == "A"].mean() == times[order == "B"].mean()


@pytest.mark.parametrize("percent", [50, 90])
def test_the_interval_covers_the_true_percentile_about_95_times_in_100(percent: float) -> None:
    random = np.random.default_rng(3)
    truth = -np.log(1 - percent / 100)  # of the exponential distribution
    found = [percentile(random.exponential(size=60).tolist(), percent, "seconds", seed) for seed in range(80)]
    covered = sum(measure.low <= truth <= measure.high for measure in found)
    assert 0.85 <= covered / len(found) < 1


def test_a_percentile_lies_in_its_interval_and_counts_its_samples() -> None:
    measure = percentile([0.01, 0.02, 0.03, 0.04, 0.5], 50, "seconds")
    assert (measure.value, measure.unit, measure.n) == (0.03, "seconds", 5)
    assert measure.low <= measure.value <= measure.high


def test_the_same_samples_give_the_same_interval() -> None:
    samples = np.random.default_rng(0).random(30).tolist()
    assert percentile(samples, 99, "seconds", 7) == percentile(samples, 99, "seconds", 7)


def test_a_ratio_finds_a_factor_of_two_and_tells_it_from_one() -> None:
    random = np.random.default_rng(5)
    base, doubled = random.normal(1.0, 0.1, 100), random.normal(2.0, 0.2, 80)
    measure = ratio(doubled.tolist(), base.tolist())
    assert measure.unit == "ratio" and measure.n == 80
    assert 1.9 < measure.value < 2.1
    assert 1.0 < measure.low < measure.value < measure.high < 2.2


def test_a_paired_ratio_is_blind_to_what_slows_both_and_the_inverse_of_its_inverse() -> None:
    random = np.random.default_rng(6)
    drift = np.exp(random.normal(0, 0.5, 40))  # a machine that others use
    ours, theirs = 1.05 * drift * random.normal(1, 0.01, 40), drift * random.normal(1, 0.01, 40)
    paired, apart = paired_ratio(ours.tolist(), theirs.tolist()), ratio(ours.tolist(), theirs.tolist())
    assert 1.04 < paired.low < 1.05 < paired.high < 1.06 and paired.n == 40
    assert apart.high - apart.low > 5 * (paired.high - paired.low)
    assert paired_ratio(theirs.tolist(), ours.tolist()).value == pytest.approx(1 / paired.value)


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")]])
def test_no_samples_and_not_a_number_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        percentile(samples, 50, "seconds")
