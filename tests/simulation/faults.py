"""What goes wrong, by the seed: kills at named requests, lost and late answers; nothing while `is_on` is false."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from tests.simulation.baton import Process, Scheduler, Task

KILL_SHARE = 0.0015
"""Steps of a worker or node at which it is killed, whatever it was about to do."""
KILLABLE = frozenset(("embed", "build", "node", "maintain", "archive"))
CRASH_POINTS = tuple(
    f"{request}{moment}"
    for request in (
        *(
            "put manifest",
            "put rows",
            "put field",
            "put ledger",
            "put deletes",
            "put tar",
            "get manifest",
            "get boundary",
            "list manifest",
            "get rows",
            "get field",
        ),
        *("swap gc", "delete manifest", "delete rows", "delete deletes", "delete ledger", "delete tar"),
        *("send vectors", "send dead-letter", "send notice", "poll media", "poll vectors", "bounds media", "bounds vectors", "commit offset"),
    )
    for moment in (("", ", answered") if request.split()[0] in ("put", "swap", "send") else ("",))
)
"""Requests before which, or between which and whose answer, a process can be killed or held; a seed chooses some of them."""


class Faults:
    """Draws faults. Everything that is counted stands in `stats`."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, stats: Counter[str]) -> None:
        self.scheduler, self.rng, self.stats = scheduler, rng, stats
        self.is_on = False
        self.points: Counter[str] = Counter()
        self.kill: Callable[[Process], None] = scheduler.kill
        self.hold: Callable[[Process], None] = lambda process: None
        self._aimed = {rng.choice(CRASH_POINTS): rng.randint(1, 5) for _ in range(rng.randint(0, 4))}
        self._holds = {rng.choice(CRASH_POINTS): rng.randint(1, 5) for _ in range(rng.randint(0, 3))}
        self.lost_share = rng.choice([0.01, 0.05])
        scheduler.on_step = self._at

    def step(self, label: str) -> None:
        """A request: others may come first, and the process may not survive it."""
        self.scheduler.step(label)

    def draw(self) -> float:
        """A number in [0, 1): small ones are faults. 1 while nothing goes wrong."""
        return self.rng.random() if self.is_on and self.scheduler.current is not None else 1.0

    def later(self, what: str, action: Callable[[], object], most_steps: int = 400) -> None:
        """Something lands long after its sender was told that nobody knows."""
        self.stats[what] += 1
        self.scheduler.at(self.rng.randint(3, most_steps) * 0.02, lambda: None if self.scheduler.over else (action(), None)[1])

    def _at(self, task: Task, label: str) -> None:
        process = task.process
        if not self.is_on or process.role not in KILLABLE:
            return
        left = self._aimed.get(label)
        if left is not None:
            self._aimed[label] = left - 1
        if left == 1 or self.rng.random() < KILL_SHARE:
            self.points[label] += 1
            self.stats["kills"] += 1
            self.kill(process)
        if label in self._holds:
            self._holds[label] -= 1
            if self._holds[label] == 0:
                self.hold(process)
