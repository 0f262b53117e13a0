"""What the simulated code finds in place of `threading`, `time`, executors and the machine's randomness: the same, by the scheduler's baton."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import ulid

import backends.catalog.manifests
import backends.catalog.objects
import backends.log_rules
import backends.memory_log
import indexer.background
import indexer.coding
import indexer.commit
import indexer.embed_worker
import indexer.slice_queue
import indexer.watchdog
import query.field_indexes
import query.follow
import query.tail_reader
from tests.simulation.baton import NEVER, Scheduler, Task

CODING_SECONDS = 1.0
"""How often a builder looks for a generation, and tries a re-encoding again; a seed lasts half a minute."""
_THREADED = (
    indexer.background,
    indexer.embed_worker,
    indexer.slice_queue,
    indexer.watchdog,
    query.field_indexes,
    query.follow,
    query.tail_reader,
)
"""Modules that wait, or hold a lock during a request."""


class Event:
    """`threading.Event`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._is_set = scheduler, False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._scheduler.sleep(NEVER if timeout is None else timeout, self.is_set)
        return self._is_set


class Lock:
    """`threading.Lock`, for what is held while a request is under way: only then can another thread meet it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._is_held = scheduler, False

    def __enter__(self) -> None:
        while self._is_held:
            self._scheduler.sleep(NEVER, lambda: not self._is_held)
        self._is_held = True

    def __exit__(self, *error: object) -> None:
        self._is_held = False


class Condition:
    """`threading.Condition`. Nobody else runs between two steps, so that its lock is none."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._told = scheduler, 0

    def __enter__(self) -> Condition:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def notify(self) -> None:
        self._told += 1

    notify_all = notify

    def wait(self, timeout: float | None = None) -> bool:
        seen = self._told
        self._scheduler.sleep(NEVER if timeout is None else timeout, lambda: self._told != seen)
        return self._told != seen

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        if not predicate():
            self._scheduler.sleep(NEVER if timeout is None else timeout, lambda: bool(predicate()))
        return predicate()


class Thread:
    """`threading.Thread`: a task of the process that starts it."""

    def __init__(self, scheduler: Scheduler, target: Callable[..., object], args: tuple[Any, ...] = (), name: str = "", daemon: bool = False) -> None:
        self._scheduler, self._target, self._args, self._name = scheduler, target, args, name
        self._task: Task | None = None
        self.ident: int | None = None

    def start(self) -> None:
        assert self._scheduler.current is not None
        self._task = self._scheduler.spawn(self._scheduler.current.process, self._target, *self._args, name=self._name)
        self.ident = 1

    def join(self, timeout: float | None = None) -> None:
        task = self._task
        if task is not None and not task.done:
            self._scheduler.sleep(NEVER if timeout is None else timeout, lambda: task.done)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done


class Executor:
    """`concurrent.futures.ThreadPoolExecutor`: a thread for each piece of work, whose result nobody asks for."""

    def __init__(self, scheduler: Scheduler, *_: object, **__: object) -> None:
        self._scheduler = scheduler
        self._threads: list[Thread] = []

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(Thread(self._scheduler, work, args, "pool"))
        self._threads[-1].start()

    def shutdown(self, **_: object) -> None:
        for thread in self._threads:
            thread.join()


class PendingFuture(Future[Any]):
    """`concurrent.futures.Future` that lets others go on while its result is waited for."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self._scheduler.sleep(NEVER if timeout is None else timeout, self.done)
        return super().result(0)


class Cooperative:
    """The stand-ins of one run."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        self.scheduler, self.rng = scheduler, rng
        self.executor = partial(Executor, scheduler)
        self.threading = SimpleNamespace(
            Event=partial(Event, scheduler),
            Condition=partial(Condition, scheduler),
            Thread=partial(Thread, scheduler),
            Lock=partial(Lock, scheduler),
        )
        self.time = SimpleNamespace(sleep=scheduler.sleep, monotonic=lambda: scheduler.now, time=lambda: scheduler.now)

    def event(self) -> Event:
        """A stop event for a process."""
        return Event(self.scheduler)

    def identity(self) -> str:
        """A topic's, cluster's or group member's identity."""
        return f"{self.rng.getrandbits(128):032x}"

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the stand-ins in place."""
        bits, milliseconds = self.rng, lambda: int(self.scheduler.now * 1000)
        generator = ulid.ULIDGenerator(milliseconds, lambda _: bits.getrandbits(80).to_bytes(10, "big"), ulid.PureRandomPolicy())
        with ExitStack() as stack:
            for module in _THREADED:
                stack.enter_context(mock.patch.object(module, "threading", self.threading))
            for module in (backends.catalog.manifests, backends.catalog.objects, backends.memory_log):
                stack.enter_context(mock.patch.object(module, "time", self.time))
            stack.enter_context(mock.patch.object(query.follow, "ThreadPoolExecutor", self.executor))
            stack.enter_context(mock.patch.object(indexer.embed_worker, "ThreadPoolExecutor", self.executor))
            stack.enter_context(mock.patch.object(indexer.commit, "random", self.rng))
            stack.enter_context(mock.patch.object(indexer.coding, "LOOK_SECONDS", CODING_SECONDS))
            stack.enter_context(mock.patch.object(indexer.coding, "RETRY_SECONDS", CODING_SECONDS))
            stack.enter_context(mock.patch.object(backends.log_rules, "new_identity", self.identity))
            stack.enter_context(mock.patch.object(ulid, "default_generator", generator))
            yield


class SimulatedClock:
    """`contracts.clock.Clock` by the scheduler's time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def now_seconds(self) -> float:
        return self._scheduler.now

    def monotonic_seconds(self) -> float:
        return self._scheduler.now

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        self._scheduler.sleep(timeout_seconds, event.is_set)
        return event.is_set()
