"""What every workload may take: seconds, and the lengths that fit into them, for a quick, a usual and a full run.

`make bench` is to be done in twenty minutes on two cores, all workloads and what they share included. So the usual lengths are chosen for these
seconds; with fewer repetitions intervals are wider. The lengths that the goals speak of are those of a full run.

Takes: nothing. Gives: `BUDGETS`. Owns: all lengths. Never: stops a workload that takes longer; the bench tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MOST_USUAL_SECONDS = 1200
"""Of `make bench`, on two cores."""


class ByRun(NamedTuple):
    """One number for each length of a run."""

    quick: int
    usual: int
    full: int


class Budget(NamedTuple):
    """Seconds that a workload is expected to take, and its lengths by name."""

    seconds: ByRun
    lengths: Mapping[str, ByRun]


BUDGETS: Mapping[str, Budget] = {
    # pairs A B; pictures in each measurement
    "W1": Budget(
        ByRun(60, 140, 480),
        {
            "pairs": ByRun(1, 4, 5),
            "lite_pictures": ByRun(200, 500, 600),
            "vit_b32_pictures": ByRun(200, 260, 600),
            "gpu_pictures": ByRun(4000, 8000, 16_000),
        },
    ),
    # pictures in a sample: as many as a worker hands to its encoder at most
    "W1c": Budget(ByRun(30, 50, 70), {"pairs": ByRun(3, 8, 10), "pictures": ByRun(16, 32, 32), "gpu_pictures": ByRun(512, 1024, 2048)}),
    # rows of a segment, and so of each measurement
    "W2": Budget(
        ByRun(40, 80, 180), {"pairs": ByRun(2, 5, 12), "segment_rows": ByRun(20_000, 100_000, 100_000), "train_rows": ByRun(12_000, 65_536, 65_536)}
    ),
    "W3": Budget(ByRun(40, 100, 420), {"pairs": ByRun(5, 10, 20), "rows": ByRun(50_000, 200_000, 500_000)}),
    # probes of each phase; seconds of a burst
    "W4": Budget(
        ByRun(70, 220, 420),
        {"idle_probes": ByRun(20, 70, 120), "load_probes": ByRun(30, 90, 150), "warm_up_probes": ByRun(5, 15, 20), "burst_seconds": ByRun(3, 6, 10)},
    ),
    "W5": Budget(ByRun(30, 95, 420), {"rows": ByRun(30_000, 60_000, 400_000), "pairs": ByRun(2, 4, 6), "window_seconds": ByRun(2, 4, 10)}),
    "filters": Budget(ByRun(20, 45, 300), {"rows": ByRun(50_000, 200_000, 1_000_000), "queries": ByRun(50, 200, 200)}),
    "HTTP": Budget(ByRun(20, 40, 180), {"rows": ByRun(30_000, 60_000, 400_000), "pairs": ByRun(3, 10, 20)}),
    # the index that E2E makes, and W6 and W13 look at
    "E2E": Budget(ByRun(30, 45, 240), {"rows": ByRun(20_000, 100_000, 1_000_000), "partitions": ByRun(1, 1, 4), "queries": ByRun(200, 500, 500)}),
    "W6": Budget(ByRun(15, 25, 120), {"pairs": ByRun(2, 5, 6)}),
    # rows of the segment that is coded
    "W13": Budget(ByRun(5, 10, 30), {"rows": ByRun(12_000, 65_536, 65_536)}),
    # pairs all on, all off; items that each run embeds and builds
    "W12": Budget(
        ByRun(60, 170, 360),
        {
            "pairs": ByRun(2, 10, 16),
            "pictures": ByRun(100, 240, 400),
            "vectors": ByRun(2000, 12_000, 30_000),
            "blocks": ByRun(10_000, 20_000, 40_000),
        },
    ),
    # rows a second that are asked for; seconds in which requests are counted
    "bill": Budget(ByRun(60, 80, 340), {"rows_per_second": ByRun(500, 1000, 1000), "seconds": ByRun(20, 60, 300)}),
}
"""By workload."""


def seconds_of(names: Sequence[str], of: int) -> int:
    """Seconds that these workloads are expected to take; `of` is the place in `ByRun`."""
    return sum(BUDGETS[name].seconds[of] for name in names)
