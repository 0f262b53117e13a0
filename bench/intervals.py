"""Statistics: percentiles, means and ratios with bootstrap intervals, and the order A B B A.

Takes: samples. Gives: `Measure`. Owns: the seeds of resampling, so that the same samples give the same interval.
Never: drops an outlier.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.frame import Measure

RESAMPLES = 5000
LEVEL = 0.95


def abba(pairs: int) -> str:
    """Order of ``2 * pairs`` measurements of A and B: ``ABBAABBA...``, so that a drift of the machine meets both alike."""
    return ("ABBA" * ((pairs + 1) // 2))[: 2 * pairs]


def percentile(samples: Sequence[float], percent: float, unit: str, seed: int = 0) -> Measure:
    """A percentile with its percentile-bootstrap interval (Efron 1979).

    Of n samples the interval of a percentile beyond ``1 - 3/n`` is too narrow at its upper end: no resample exceeds the largest sample.

    Parameters
    ----------
    samples : Sequence of float
        At least one.
    percent : float
        50 is the median.
    unit : str
        Of the samples.
    seed : int
        Of the resampling.
    """
    values = _checked(samples)
    low, high = _interval(_resampled(values, percent, np.random.default_rng(seed)))
    return Measure(float(np.percentile(values, percent)), unit, low, high, len(values))


def mean(samples: Sequence[float], unit: str, seed: int = 0) -> Measure:
    """The mean of independent samples with its percentile-bootstrap interval, in their unit."""
    values = _checked(samples)
    chosen = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = _interval(values[chosen].mean(axis=1))
    return Measure(float(values.mean()), unit, low, high, len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float], percent: float = 50.0, seed: int = 0) -> Measure:
    """Percentile of `ours` divided by that of `theirs`; both are resampled independently. `n` is the smaller number of samples."""
    ours_values, their_values = _checked(ours), _checked(theirs)
    random = np.random.default_rng(seed)
    resampled = _resampled(ours_values, percent, random) / _resampled(their_values, percent, random)
    low, high = _interval(resampled)
    value = float(np.percentile(ours_values, percent) / np.percentile(their_values, percent))
    return Measure(value, "ratio", low, high, min(len(ours_values), len(their_values)))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Measure:
    """Geometric mean of the ratios of samples that were measured beside each other, with its percentile-bootstrap interval over the pairs.

    What slows both of a pair alike is divided out, which it is not where each side's median is taken by itself.
    """
    logarithms = np.log(_checked(ours)) - np.log(_checked(theirs))
    chosen = np.random.default_rng(seed).integers(0, len(logarithms), (RESAMPLES, len(logarithms)))
    low, high = _interval(np.exp(logarithms[chosen].mean(axis=1)))
    return Measure(float(np.exp(logarithms.mean())), "ratio", low, high, len(logarithms))


def _checked(samples: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(samples, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("samples must be a non-empty list of finite numbers")
    return values


def _resampled(values: NDArray[np.float64], percent: float, random: np.random.Generator) -> NDArray[np.float64]:
    chosen = random.integers(0, len(values), (RESAMPLES, len(values)))
    found: NDArray[np.float64] = np.percentile(values[chosen], percent, axis=1)
    return found


def _interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)
