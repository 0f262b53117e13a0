"""`python -m tests.simulation --seeds N [--first SEED] [--jobs N] [--bug NAME]`: seeds without a fault in our code, then each planted bug.

Exit code 1 where an invariant did not hold, or where a planted bug was not found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

from tests.simulation.planted import PLANTED
from tests.simulation.seeds import first_found, run_seed, run_seeds

BUG_SEEDS = 400
_SHOWN = 5


def main() -> int:
    """Run what was asked for, and print it as tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="the whole protocol on our own code, by seeds")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds without a planted bug")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--bug", choices=[*PLANTED, "none"], help="plant this one only, and run --seeds with it; none: plant none")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds)
    if asked.bug in PLANTED:
        return 0 if find(asked.bug, seeds) else 1
    is_good = run(seeds, asked.jobs)
    if asked.bug is None:
        print("\nplanted bugs")
        is_good = all([find(bug, range(asked.first, asked.first + BUG_SEEDS)) for bug in PLANTED]) and is_good
    return 0 if is_good else 1


def run(seeds: range, jobs: int) -> bool:
    """Run seeds on the code as it is."""
    begun, stats, points, bad = time.monotonic(), Counter[str](), Counter[str](), 0
    for outcome in run_seeds(seeds, jobs):
        stats += outcome.stats
        points += outcome.points
        if outcome.violation is not None:
            bad += 1
            if bad <= _SHOWN:
                print(f"seed {outcome.seed}: {outcome.violation}")
    minutes = (time.monotonic() - begun) / 60
    print(f"{len(seeds)} seeds, {bad} violations, {len(seeds) / minutes:.0f} seeds a minute in {jobs} processes")
    print(*(f"  {name:24}{count:>10}" for name, count in sorted(stats.items())), sep="\n")
    print("killed at", *(f"  {name:30}{count:>6}" for name, count in points.most_common()), sep="\n")
    return bad == 0


def find(bug: str, seeds: range) -> bool:
    """Look for a planted bug, and tell the first seed that finds it, which is run again: it must end in the same way."""
    found = first_found(bug, seeds)
    if found is None:
        print(f"  {bug:14}NOT FOUND in {len(seeds)} seeds   {PLANTED[bug][0]}")
        return False
    again = run_seed(found.seed, bug).violation == found.violation
    print(f"  {bug:14}seed {found.seed:<6}{PLANTED[bug][0]}\n{'':24}{(found.violation or '')[:150]}")
    return again


if __name__ == "__main__":
    sys.exit(main())
