"""How long each workload took, what it was expected to take, and how much is left of a run.

Takes: names of workloads, a clock. Gives: `RunClock`, a column for its bar. Owns: the estimate of what is left. Never: stops anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import ProgressColumn, Task
from rich.text import Text

from bench.budget import BUDGETS, MOST_USUAL_SECONDS, ByRun


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds that a workload took, and those that it was expected to take."""

    seconds: float
    expected_seconds: int


class RunClock:
    """Watches the workloads of one run.

    Parameters
    ----------
    names : Sequence of str
        Workloads in their order.
    which : int
        Length of the run, a place in `bench.budget.ByRun`.
    now : callable
        Seconds.
    """

    def __init__(self, names: Sequence[str], which: int, now: Callable[[], float] = time.monotonic) -> None:
        self._expected = {name: BUDGETS[name].seconds[which] for name in names}
        self._now, self._begin, self._running, self._which = now, now(), "", which
        self._running_since = self._begin
        self.took: dict[str, Took] = {}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """A workload runs while the context lasts."""
        self._running, self._running_since = name, self._now()
        try:
            yield
        finally:
            self.took[name] = Took(self._now() - self._running_since, self._expected[name])
            self._running = ""

    @property
    def total_seconds(self) -> float:
        """Since the run began."""
        return self._now() - self._begin

    def left_seconds(self) -> float:
        """What the workloads that are to come are expected to take, and the running one beyond what it took."""
        waiting = sum(seconds for name, seconds in self._expected.items() if name not in self.took and name != self._running)
        running = max(0.0, self._expected.get(self._running, 0) - (self._now() - self._running_since)) if self._running else 0.0
        return waiting + running

    def seconds(self) -> dict[str, float]:
        """Seconds by workload, for the notes."""
        return {name: round(took.seconds, 1) for name, took in self.took.items()}

    def lines(self) -> list[str]:
        """One line for each workload, and one for all; what took longer than it was to take is told."""
        expected = sum(took.expected_seconds for took in self.took.values())
        rows = [*((name, took.seconds, took.expected_seconds) for name, took in self.took.items()), ("all", self.total_seconds, expected)]
        told = [f"{name:8} {seconds:7.0f} s of {least} s{', longer than planned' if seconds > least else ''}" for name, seconds, least in rows]
        if self._which == ByRun._fields.index("usual") and self.total_seconds > MOST_USUAL_SECONDS:
            told.append(f"longer than {MOST_USUAL_SECONDS} s, in which a usual run is to be done on two cores of its own")
        return told


class LeftColumn(ProgressColumn):
    """The time that is left of the whole run, on the bar of all workloads; nothing on other bars.

    Parameters
    ----------
    clock : RunClock
        Of the run.
    description : str
        Of the bar.
    """

    def __init__(self, clock: RunClock, description: str) -> None:
        super().__init__()
        self._clock, self._description = clock, description

    def render(self, task: Task) -> Text:
        """Minutes and seconds."""
        if task.description != self._description:
            return Text("")
        minutes, seconds = divmod(round(self._clock.left_seconds()), 60)
        return Text(f"about {minutes}:{seconds:02d} left")
