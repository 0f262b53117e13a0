"""One thread at a time: a seed decides which thread takes the next step.

Every thread of the simulated processes waits for the baton. It gives it back at each request to the log or the store, and at each wait; who gets it
next is drawn from the seed. So a run is the same each time, and a process can be killed or held at any request.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

STEP_SECONDS = 0.02
"""Simulated time that one step takes; where all threads sleep, time jumps to the first that wakes."""
MOST_STEPS = 60_000
MOST_SECONDS = 200.0
"""Of real time, for a seed: a thousand times what it takes."""
NEVER = float("inf")


class Killed(BaseException):
    """Raised in the threads of a process that is dead: nothing that they do from now on has an effect."""


class ViolationError(AssertionError):
    """An invariant does not hold."""


class Task:
    """A thread of a process: it may run when `wake` has come or `until` says so."""

    def __init__(self, process: Process, name: str, target: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.process, self.name, self.target, self.args = process, name, target, args
        self.baton = threading.Lock()
        self.baton.acquire()
        self.wake, self.until = 0.0, _never
        self.done = False
        self.error: BaseException | None = None


def _never() -> bool:
    return False


class Process:
    """What is killed, and held, as a whole. `members` are its places in consumer groups."""

    def __init__(self, name: str, role: str) -> None:
        self.name, self.role = name, role
        self.tasks: list[Task] = []
        self.is_dead = False
        self.wake = 0.0
        self.members: list[tuple[tuple[str, str], str]] = []
        self.on_end: Callable[[Process, BaseException | None], None] = lambda process, error: None


class Scheduler:
    """Runs tasks one step at a time."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now, self.steps = 1_700_000_000.0, 0
        self.current: Task | None = None
        self.violation: str | None = None
        self.over = False
        self.processes: list[Process] = []
        self.on_step: Callable[[Task, str], None] = lambda task, label: None
        self._dying: list[Process] = []
        self._main = threading.Lock()
        self._main.acquire()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._threads: list[threading.Thread] = []

    # ---- for the world ---------------------------------------------------------------------------------------------
    def run(self, first: Process) -> None:
        """Run until `first` ends, or an invariant does not hold; every thread has ended when this returns."""
        first.on_end = lambda process, error: self._finish(error)
        self.current = self._choose()
        assert self.current is not None
        self.current.baton.release()
        if not self._main.acquire(timeout=MOST_SECONDS):
            raise ViolationError(f"{self.current and self.current.name} keeps the baton: does it wait for a lock that is held during a request?")
        for thread in self._threads:
            thread.join(30)
        if self.violation is not None:
            raise ViolationError(self.violation)

    def spawn(self, process: Process, target: Callable[..., object], *args: Any, name: str = "main") -> Task:
        """Begin a thread of a process."""
        task = Task(process, f"{process.name}/{name}", target, args)
        if not process.tasks:
            self.processes.append(process)
        process.tasks.append(task)
        thread = threading.Thread(target=self._body, args=(task,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return task

    def at(self, delay_seconds: float, action: Callable[[], object]) -> None:
        """Do something later, between two steps."""
        heapq.heappush(self._events, (self.now + delay_seconds, next(self._numbers), action))

    def kill(self, process: Process) -> None:
        """End a process as `kill -9` does: its threads unwind, without any effect, before anybody takes another step."""
        if not process.is_dead:
            process.is_dead = True
            self._dying.append(process)

    def fail(self, message: str) -> None:
        """Note that an invariant does not hold, and end the run."""
        self.violation = self.violation or message
        self._stop()
        raise Killed

    # ---- for the threads -------------------------------------------------------------------------------------------
    def step(self, label: str) -> None:
        """Give others a turn; `label` names the request that follows."""
        task = self.current
        if task is None:  # set-up, before the run
            return
        if task.process.is_dead:
            raise Killed
        self.on_step(task, label)
        self._pass_on(task)

    def sleep(self, seconds: float, until: Callable[[], bool] = _never) -> None:
        """Wait as long, or until a condition holds."""
        task = self.current
        assert task is not None
        if task.process.is_dead:
            raise Killed
        task.wake, task.until = self.now + seconds, until
        self._pass_on(task)
        task.wake, task.until = 0.0, _never

    # ---- the baton -------------------------------------------------------------------------------------------------
    def _pass_on(self, task: Task) -> None:
        if not task.process.is_dead:
            self.steps += 1
            self.now += STEP_SECONDS
            if self.steps > MOST_STEPS:
                self.fail(f"stall: not over after {MOST_STEPS} steps")
            chosen = self._choose()
            if chosen is not task:
                self._hand_to(chosen)
                task.baton.acquire()
        if task.process.is_dead:
            raise Killed

    def _hand_to(self, task: Task | None) -> None:
        self.current = task
        (self._main if task is None else task.baton).release()

    def _body(self, task: Task) -> None:
        task.baton.acquire()
        try:
            if not task.process.is_dead:
                task.target(*task.args)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - judged by whoever owns the process
            task.error = error
        task.done = True
        if task is not task.process.tasks[0]:
            task.process.tasks.remove(task)
        if task is task.process.tasks[0] and not self.over:
            task.process.on_end(task.process, task.error)
            self.kill(task.process)
        elif task.error is not None and not self.over:
            self.violation = f"a thread of {task.name} ended: {task.error!r}"
            self._stop()
        self._hand_to(self._choose())

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            self.violation = self.violation or f"the simulation itself failed: {error!r}"
        self._stop()

    def _stop(self) -> None:
        self.over = True
        for process in self.processes:
            self.kill(process)

    def _choose(self) -> Task | None:
        """Who takes the next step: the dead first, so that they are gone; None when all have ended."""
        while True:
            while self._dying:
                for task in self._dying[-1].tasks:
                    if not task.done:
                        return task
                self.processes.remove(self._dying.pop())
            if self.over:
                return None
            now = self.now
            while self._events and self._events[0][0] <= now:
                self._do(heapq.heappop(self._events)[2])
            if self._dying:
                continue
            ready = [
                task
                for process in self.processes
                if process.wake <= now
                for task in process.tasks
                if task.wake <= now or (task.until is not _never and task.until())
            ]
            if ready:
                return ready[0] if len(ready) == 1 else ready[int(self.rng.random() * len(ready))]
            self._jump()

    def _do(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Killed:  # an invariant did not hold; whose turn it is has nothing to do with it
            pass

    def _jump(self) -> None:
        wakes = [max(task.wake, process.wake) for process in self.processes for task in process.tasks if not task.done]
        wakes += [due for due, _, _ in self._events[:1]]
        first = min(wakes, default=NEVER)
        if first == NEVER:
            self.violation = self.violation or "every thread waits for another"
            self._stop()
        self.now = max(self.now, first)
