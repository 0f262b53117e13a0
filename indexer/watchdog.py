"""The embed worker's watchdog: an acknowledged batch may still be lost, or dropped by the chain rule; it makes sure of what was written.

It reads back what others may have written, or a lost leader may have taken along; not what it knows without (ADR 0016).

Takes: the worker's runs, and the paused partitions that it holds. Gives: lag, and a call for each partition that has to go back.
Owns: the scans of what it watches.
Never: mends anything itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Protocol

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, SnapshotError, UnavailableError
from indexer.partition_run import PartitionRun
from indexer.partition_source import ChainScan
from indexer.stage_lag import StageLag

logger = logging.getLogger(__name__)


class Watched(Protocol):
    """What the watchdog sees of its worker, which changes all of it meanwhile."""

    engines: Engines
    collection: CollectionRecord
    runs: dict[int, PartitionRun]
    held: dict[int, PartitionRun]
    owned: set[int]
    is_active: bool

    def go_back(self, partition: int, run_number: int, error: BaseException) -> None:
        """Told where the chain is not what the worker wrote (any thread)."""
        ...


class Watchdog:
    """Watches one worker's runs, in a thread of its own.

    Parameters
    ----------
    worker : Watched
        Whose runs.
    """

    def __init__(self, worker: Watched) -> None:
        self._worker, self._engines = worker, worker.engines
        self._lag = StageLag(worker.engines, worker.collection, worker.collection.source_topic, "embed")

    def run(self, stop: threading.Event) -> None:
        """Look every `embed_watchdog_seconds` until `stop` is set."""
        watched: dict[int, ChainScan] = {}
        while not stop.wait(self._engines.settings.embed_watchdog_seconds):
            runs, held = dict(self._worker.runs), dict(self._worker.held)
            current = {run.number: run.scan for run in (*runs.values(), *held.values())}
            for number in watched.keys() - current.keys():
                watched[number].close()
            watched = current
            for partition, run in (runs | held).items():
                try:
                    self._check(partition, run) if partition in runs else run.scan.advance()
                except (UnavailableError, SnapshotError, CorruptError) as error:  # a corrupt one stops the partition where it begins again
                    logger.warning("the watchdog cannot read partition %d: %s", partition, error)
                    if not isinstance(error, UnavailableError):
                        self._worker.go_back(partition, run.number, error)
            self._measure_lag(runs, held)
        for scan in watched.values():
            scan.close()

    def _measure_lag(self, runs: Mapping[int, PartitionRun], held: Mapping[int, PartitionRun]) -> None:
        if not self._worker.is_active:  # two indexes of a collection have one lag: that of the index that answers
            return
        done = {p: run.sent_next for p, run in runs.items()} | {p: run.scan.chain.expected for p, run in held.items()}
        self._engines.metrics.paused.labels(self._worker.collection.name, "embed").set(len(held))
        try:
            self._lag.measure(done, self._worker.owned)
        except UnavailableError:
            return  # the fetch loop tells

    def _check(self, partition: int, run: PartitionRun) -> None:
        sent = run.sent_next
        behind, ahead = False, False
        if run.scan.chain.expected < sent or sent == run.checked_next:
            end = run.scan.advance(run.own)
            behind = end < run.checked_next  # two looks in a row: what was sent a whole interval ago must be in the chain
            is_outrun = end > sent == run.checked_next == run.sent_next  # nothing was sent for as long: another one wrote, such as `skip`
            ahead = end > run.fetched_next or is_outrun
        if behind or ahead:
            what = "behind" if behind else "ahead of"
            error = UnavailableError(f"the chain stands at {run.scan.chain.expected}, {what} what this worker wrote")
            self._worker.go_back(partition, run.number, error)
        run.checked_next = sent
