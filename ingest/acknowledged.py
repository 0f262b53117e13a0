"""What of a run is acknowledged: futures in, journal lines and counts out.

Takes: sends with the unit and entries they belong to. Gives: how far each unit is done, how many records are in flight or failed.
Owns: the rule that a unit is done up to its first entry that is not acknowledged.
Never: writes a file from a thread of the log: what is acknowledged waits until the run writes it down.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ingest.resume import COMPLETE, Journal, SourceTotals


class UnitProgress:
    """One unit on its way: entries are noted as done in any order, `done` grows without a gap."""

    def __init__(self, totals: SourceTotals, journal: Journal | None, name: str, stamp: str, first: int) -> None:
        self.totals, self.journal, self.name, self.stamp = totals, journal, name, stamp
        self.done = first
        self.total: int | None = None
        self.is_delete = False
        self._ahead: set[int] = set()

    def add(self, entries: Sequence[int]) -> None:
        """Entries that are settled: acknowledged, or rejected."""
        self._ahead.update(entries)
        while self.done in self._ahead:
            self._ahead.remove(self.done)
            self.done += 1

    @property
    def is_complete(self) -> bool:
        """All entries are settled, and there are no more."""
        return self.total is not None and self.done >= self.total


class Acknowledgements:
    """Sends of one run, until each is acknowledged or failed. Safe between threads.

    Parameters
    ----------
    max_records : int
        Records in flight beyond which `wait_for_room` waits; bytes in flight are the producer's to bound.
    """

    def __init__(self, max_records: int) -> None:
        self._max_records = max_records
        self._changed = threading.Condition()
        self._noted: dict[int, UnitProgress] = {}
        self.in_flight = 0
        self.failed = 0
        self.acknowledged = 0
        self.items = 0
        self.size_bytes = 0
        self.first_error: BaseException | None = None

    def renewed(self) -> Acknowledgements:
        """The same counts, with nothing in flight or failed: for what goes through another producer."""
        fresh = Acknowledgements(self._max_records)
        with self._changed:
            fresh.acknowledged, fresh.items, fresh.size_bytes = self.acknowledged, self.items, self.size_bytes
        return fresh

    def wait_for_room(self, timeout_seconds: float) -> bool:
        """Wait until another record may be sent; False when time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self.in_flight < self._max_records, timeout_seconds)

    def follow(self, futures: Sequence[Future[Any]], progress: UnitProgress, entries: Sequence[int], size_bytes: int) -> None:
        """Note that `entries` of a unit are done once all of these records are acknowledged."""
        waiting = [len(futures)]
        with self._changed:
            self.in_flight += len(futures)

        def ended(future: Future[Any]) -> None:
            error = future.exception()
            with self._changed:
                self.in_flight -= 1
                if error is None:
                    self.acknowledged += 1
                    waiting[0] -= 1
                    if waiting[0] == 0:
                        for totals in (progress.totals, self):
                            totals.items += len(entries)
                            totals.size_bytes += size_bytes
                        self._settle(progress, entries)
                else:
                    self.failed += 1
                    self.first_error = self.first_error or error
                self._changed.notify_all()

        for future in futures:
            future.add_done_callback(ended)

    def reject(self, progress: UnitProgress, entry: int, reason: str) -> None:
        """Note an entry that is done without being sent."""
        with self._changed:
            progress.totals.rejected[reason] = progress.totals.rejected.get(reason, 0) + 1
            self._settle(progress, [entry])

    def end_of(self, progress: UnitProgress, total: int) -> None:
        """Note that a unit has no more than `total` entries."""
        with self._changed:
            progress.total = total
            self._settle(progress, ())

    def _settle(self, progress: UnitProgress, entries: Sequence[int]) -> None:
        progress.add(entries)
        if progress.journal is not None:
            self._noted[id(progress)] = progress

    def wait_until_idle(self, timeout_seconds: float) -> bool:
        """Wait until every send has ended; False when time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self.in_flight == 0, timeout_seconds)

    def write_journals(self) -> None:
        """Note in the journals what was settled since the last call; the caller then writes them."""
        with self._changed:
            noted, self._noted = self._noted, {}
            states = [(progress, progress.done, progress.is_complete) for progress in noted.values()]
        for progress, done, is_complete in states:
            assert progress.journal is not None  # `_settle` noted it
            if progress.is_delete and is_complete:
                progress.journal.forget(progress.name)
            elif not progress.is_delete and (done or is_complete):
                progress.journal.note(progress.name, progress.stamp, COMPLETE if is_complete else done)
