"""A role over many collections: one worker thread per collection (or index), found by looking at the catalog again and again.

Takes: a way to make a worker for a collection. Gives: running workers, told of changes. Owns: discovery, and the end of all when one fails for good.
Never: knows what the workers do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, SettingsError, SnapshotError, UnavailableError

logger = logging.getLogger(__name__)
DISCOVERY_SECONDS = 2.0
RESTART_SECONDS = 1.0
"""Until a worker that did not get as far as its own loop, where it tries again by itself, is made anew."""


class Worker(Protocol):
    """Something that works on one collection until it is stopped."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        ...


@runtime_checkable
class FollowsRecord(Protocol):
    """A worker that wants to know of every newer version of its collection's record."""

    def take(self, record: CollectionRecord) -> None:
        """See it (from another thread)."""
        ...


class _Running:
    """A worker in its thread; `seen` is the record that it was made for."""

    def __init__(self, make: Callable[[CollectionRecord], Worker], seen: CollectionRecord, newest: CollectionRecord, failed: threading.Event) -> None:
        self.collection = seen.name
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.is_told = False
        self._make, self._seen, self._newest, self._failed = make, seen, newest, failed
        self._worker: Worker | None = None
        self.thread = threading.Thread(target=self._run, name=f"worker-{self.collection}")
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                self._worker = self._make(self._seen)
                self.take(self._newest)
                self._worker.run(self.stop)
            except UnavailableError as error:  # it would end all other collections, and the query service in the same process
                logger.warning("%s begins again: %s", self.thread.name, error)
                self.stop.wait(RESTART_SECONDS)
            except BaseException as error:  # noqa: BLE001 - handed to `run_collections`, which raises it
                self.error = error
                self._failed.set()
                return

    def take(self, record: CollectionRecord) -> None:
        """Hand on the newest version of the collection's record."""
        self._newest = record
        if isinstance(self._worker, FollowsRecord):
            self._worker.take(record)


def run_collections(
    engines: Engines,
    wanted: Sequence[str] | None,
    stop: threading.Event,
    make: Callable[[CollectionRecord], Worker],
    *,
    stage: str,
    ends_without_work: bool = False,
    each_index: bool = False,
) -> None:
    """Keep one worker per collection until `stop` is set.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics.
    wanted : sequence of str or None
        Names of the collections to work on; None for all, those created later included.
    stop : threading.Event
        Ends all workers.
    make : callable
        Makes the worker of a collection, in the worker's own thread (loading a model takes seconds).
    stage : str
        What a collection that is stopped counts under: ``headwater_records_total`` with the outcome ``stopped``.
    ends_without_work : bool
        End with its error once every collection is stopped; False where the process has other work.
    each_index : bool
        Keep a worker for each index of a collection, made for the record as that index sees it; one for the collection where it is False.

    Raises
    ------
    HeadwaterError
        The first error that a worker could not mend; all others are stopped first.
    """
    catalog = CollectionCatalog(engines.store)
    failed = threading.Event()
    running: dict[str, _Running] = {}
    try:
        while not stop.is_set():
            _follow_catalog(catalog, wanted, running, failed, make, each_index)
            if failed.is_set():
                failed.clear()
                _tell_stopped(engines, running.values(), stage, is_alone=wanted is None)
            if _fatal_error(running.values(), ends_without_work) is not None:
                _follow_catalog(catalog, wanted, running, failed, make, each_index)  # what was deleted meanwhile takes its error along
                if _fatal_error(running.values(), ends_without_work) is not None:
                    break
            _wait_any(stop, failed, DISCOVERY_SECONDS)
    finally:
        for worker in running.values():
            worker.stop.set()
        for worker in running.values():
            worker.thread.join(engines.settings.stop_seconds)
    _tell_stopped(engines, running.values(), stage, is_alone=wanted is None)
    fatal = _fatal_error(running.values(), ends_without_work)
    if fatal is not None:
        raise fatal


def _tell_stopped(engines: Engines, workers: Collection[_Running], stage: str, *, is_alone: bool) -> None:
    """A collection whose settings do not fit this machine stops alone, unless it was asked for by name (not `is_alone`)."""
    for worker in workers:
        if is_alone and isinstance(worker.error, SettingsError) and not worker.is_told:
            worker.is_told = True
            engines.metrics.records.labels(worker.collection, stage, "stopped").inc()
            logger.error("%s is stopped, the others go on: %s", worker.thread.name, worker.error)


def _fatal_error(workers: Collection[_Running], ends_without_work: bool) -> BaseException | None:
    """The error that ends the role: a worker's that does not stop alone, or the first one's once all are stopped."""
    errors = [worker.error for worker in workers if not worker.is_told]
    if ends_without_work and not errors:
        errors = [worker.error for worker in workers]
    return next((error for error in errors if error is not None), None)


def _follow_catalog(
    catalog: CollectionCatalog,
    wanted: Sequence[str] | None,
    running: dict[str, _Running],
    failed: threading.Event,
    make: Callable[[CollectionRecord], Worker],
    each_index: bool,
) -> None:
    try:
        found = catalog.list() if wanted is None else [record for name in wanted if (record := catalog.find(name)) is not None]
    except (UnavailableError, SnapshotError) as error:
        logger.warning("the catalog does not answer, trying again: %s", error)
        return
    except CorruptError as error:
        if not running:
            raise
        logger.error("the catalog cannot be read, what runs goes on: %s", error)
        return
    live = {work: told for record in found for work, told in _works(record, each_index).items()}
    for gone in [work for work in running if work not in live]:
        running[gone].stop.set()
        running.pop(gone).thread.join()
    for work, (seen, newest) in live.items():
        if work in running:
            running[work].take(newest)
        else:
            running[work] = _Running(make, seen, newest, failed)


def _works(record: CollectionRecord, each_index: bool) -> dict[str, tuple[CollectionRecord, CollectionRecord]]:
    """What there is to work on, by identity: the record that a worker is made for, and the newest one."""
    if not each_index:
        return {record.incarnation: (record, record)}
    return {f"{record.incarnation}/{index.name}": (record.seen_by(index.name), record) for index in record.indexes}


def _wait_any(stop: threading.Event, failed: threading.Event, seconds: float) -> None:
    for _ in range(int(seconds / 0.1)):
        if failed.is_set() or stop.wait(0.1):
            return
