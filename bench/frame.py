"""The frame: what a workload is, and what it gives back.

Takes: nothing. Gives: `Workload`, `Outcome`, `Measure`, `Goal`, `Bench`. Owns: the shape of a result.
Never: fails because of a timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.progress import Progress, TaskID

from bench.budget import BUDGETS


@dataclass(frozen=True, slots=True)
class Measure:
    """One mode's value with the 95 % interval ``[low, high]`` and the number of samples behind it.

    `unit` is ``seconds``, ``ratio`` or another word that stands in the mode's description.
    """

    value: float
    unit: str
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Goal:
    """What we want of a mode, in its unit: drawn and told, never asserted."""

    limit: float
    smaller_is_better: bool = True

    def is_met(self, measure: Measure) -> bool:
        """Tell whether the value, not merely its interval, reaches the goal."""
        return measure.value < self.limit if self.smaller_is_better else measure.value > self.limit


@dataclass(slots=True)
class Outcome:
    """What a workload found: measures by mode, and notes that make them readable (threads, waits, rates, CPU-seconds of servers)."""

    modes: dict[str, Measure] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every workload is given.

    Parameters
    ----------
    quick : bool
        Few repetitions: shows that the workload works; its figures are rough.
    seed : int
        Of every random choice.
    progress : rich.progress.Progress
        A live display; `steps` adds a bar.
    full : bool
        As many rows as the goals speak of: takes longer than `make bench` may.
    """

    quick: bool
    seed: int
    progress: Progress
    full: bool = False

    @property
    def which(self) -> int:
        """Place of this run's length in `bench.budget.ByRun`."""
        return 0 if self.quick else 2 if self.full else 1

    def length(self, workload: str, name: str) -> int:
        """How much of something this run is to take (`bench.budget`)."""
        return BUDGETS[workload].lengths[name][self.which]

    def lengths(self, workload: str) -> dict[str, int]:
        """All lengths of a workload in this run, by name."""
        return {name: by_run[self.which] for name, by_run in BUDGETS[workload].lengths.items()}

    @contextmanager
    def steps(self, text: str, total: int | None = None) -> Iterator[Step]:
        """Show a bar while the context lasts; without `total` it pulses."""
        task = self.progress.add_task(text, total=total)
        try:
            yield Step(self.progress, task)
        finally:
            self.progress.update(task, total=1, completed=1) if total is None else None
            self.progress.stop_task(task)


@dataclass(frozen=True, slots=True)
class Step:
    """One bar."""

    progress: Progress
    task: TaskID

    def done(self, count: int = 1) -> None:
        """Advance the bar."""
        self.progress.advance(self.task, count)


class Workload(Protocol):
    """One row of the table of workloads (docs/benchmarks.md)."""

    name: str
    title: str

    @property
    def goals(self) -> Mapping[str, Goal]:
        """Goals by mode; not every mode has one."""
        ...

    def run(self, bench: Bench) -> Outcome:
        """Measure; raises HeadwaterError where the system does not work, never because it is slow."""
        ...
