"""Runs of many seeds: one after the other, or in several processes."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.simulation.baton import ViolationError
from tests.simulation.planted import planted
from tests.simulation.world import World


@dataclass(frozen=True)
class Outcome:
    """How a seed ended: `violation` is None where every invariant held."""

    seed: int
    violation: str | None
    stats: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)


def run_seed(seed: int, bug: str | None = None) -> Outcome:
    """Run one seed, with a planted bug or without."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # thousands of warnings, all of them wanted
    world = World(seed)
    try:
        with planted(bug):
            world.run()
    except ViolationError as error:
        return Outcome(seed, str(error), world.stats, world.faults.points)
    finally:
        logging.disable(before)
    return Outcome(seed, None, world.stats, world.faults.points)


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """Run many seeds, in any order, in so many processes."""
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with ProcessPoolExecutor(jobs, initializer=_prepare) as pool:
        yield from pool.map(run_seed, seeds, chunksize=5)


def first_found(bug: str, seeds: Iterable[int]) -> Outcome | None:
    """The first of the seeds that finds a planted bug, and not that it is planted in code that has changed since."""
    found = next((outcome for seed in seeds if (outcome := run_seed(seed, bug)).violation is not None), None)
    if found is not None and any(f"{name}(" in (found.violation or "") for name in ("TypeError", "AttributeError", "NameError")):
        raise ValueError(f"{bug} does not fit the code in which it is planted: {found.violation}")
    return found


def _prepare() -> None:
    """Threads that take turns run fastest where none has to wake another core; and no collection looks at what was imported."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
    gc.collect()
    gc.freeze()
