"""One job at a time beside a worker's loop.

Takes: jobs, each a function of an event that asks for an end. Gives: what a job returned or raised, to the loop that asks. Owns: one thread a job.
Never: calls back; the loop alone changes what the loop owns.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

THREAD_BYTES = 32 * 1024 * 1024
"""Address space that a thread finds when it begins: its stack of 8 MiB, and as much again for what it allocates first, with something to spare."""
Result = TypeVar("Result")
Job = Callable[[threading.Event], Result]


@dataclass(frozen=True, slots=True)
class Finished(Generic[Result]):
    """How a job ended: `error` is None where it returned `result`."""

    result: Result | None
    error: Exception | None


class Background(Generic[Result]):
    """Runs jobs of one kind, one after the other, in a thread.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._finished: Finished[Result] | None = None

    @property
    def is_free(self) -> bool:
        """True when nothing runs and nothing waits to be taken."""
        return self._thread is None

    def start(self, job: Job[Result]) -> None:
        """Begin a job; only while `is_free`. MemoryError where a thread has no room: Python waits for ever for one that could not begin."""
        try:
            mmap.mmap(-1, THREAD_BYTES).close()
        except OSError as error:
            raise MemoryError(f"no {THREAD_BYTES} bytes of address space for a thread") from error
        self._thread = threading.Thread(target=self._run, args=(job,), name=self._name, daemon=True)
        self._thread.start()

    def take(self) -> Finished[Result] | None:
        """The outcome of the job that ended, once; None while it runs, or where there is none."""
        if self._thread is None or self._thread.is_alive():
            return None
        finished, self._finished, self._thread = self._finished, None, None
        return finished

    def wait(self, timeout_seconds: float) -> None:
        """Wait for the job to end, at most that long; it is taken as ever."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Ask the job to end, and wait for it that long."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _run(self, job: Job[Result]) -> None:
        try:
            self._finished = Finished(job(self._stop), None)
        except Exception as error:  # noqa: BLE001 - handed to the loop, which decides
            self._finished = Finished(None, error)
