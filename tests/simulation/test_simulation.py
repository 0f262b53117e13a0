"""Every invariant holds for every seed; and each planted bug is found, so that this means something."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.seeds import first_found, run_seed

CHUNK = 20
CHUNKS = 8
MOST_SEEDS = 400
"""Within so many seeds each planted bug is found; `python -m tests.simulation` tells the first."""


@pytest.mark.parametrize("chunk", [pytest.param(chunk, marks=[pytest.mark.slow] if chunk else []) for chunk in range(CHUNKS)])
def test_nothing_is_lost_and_nothing_comes_twice_whatever_goes_wrong(chunk: int) -> None:
    met = Counter[str]()
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        outcome = run_seed(seed)
        assert outcome.violation is None, f"python -m tests.simulation --bug none --first {seed} --seeds 1: {outcome.violation}"
        assert outcome.stats["commits"] > 1 and outcome.stats["records"] >= 20
        met += outcome.stats
    if chunk == 0:  # in another one, none of so few seeds may come so far
        assert all(met[what] > 0 for what in ("archive commits", "media truncated", "re-encoded", "of two partitions")), met


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    assert first_found(bug, range(MOST_SEEDS)) is not None, f"{PLANTED[bug][0]}: not found in {MOST_SEEDS} seeds"


def test_a_seed_is_the_same_run_each_time() -> None:
    first, again = run_seed(7), run_seed(7)
    assert first.stats == again.stats and first.points == again.points
    assert run_seed(8).stats != first.stats
