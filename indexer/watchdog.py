"""The embed worker's watchdog: an acknowledged batch may still be lost, or dropped by the chain rule; it reads back what was written.

Takes: the worker's runs. Gives: lag, and a call for each partition that has to go back. Owns: the scans of the runs it watches.
Never: mends anything itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from contracts.engines import Engines
from contracts.errors import SnapshotError, UnavailableError
from contracts.head_lag import HeadLag
from indexer.partition_run import PartitionRun
from indexer.partition_source import ChainScan

logger = logging.getLogger(__name__)

GoBack = Callable[[int, int, BaseException], None]


class Watchdog:
    """Watches one worker's runs, in a thread of its own.

    Parameters
    ----------
    engines : Engines
        Log, settings, metrics.
    collection_name, source_topic : str
        Whose records are worked on.
    runs : Mapping of int to PartitionRun
        By partition; the worker changes it meanwhile.
    go_back : callable
        Told partition, run number and error where the chain is not what the worker wrote.
    """

    def __init__(self, engines: Engines, collection_name: str, source_topic: str, runs: Mapping[int, PartitionRun], go_back: GoBack) -> None:
        self._engines, self._collection, self._topic = engines, collection_name, source_topic
        self._runs, self._go_back = runs, go_back
        self._lag = HeadLag()

    def run(self, stop: threading.Event) -> None:
        """Look every `embed_watchdog_seconds` until `stop` is set."""
        watched: dict[int, ChainScan] = {}
        while not stop.wait(self._engines.settings.embed_watchdog_seconds):
            runs = dict(self._runs)
            current = {run.number: run.scan for run in runs.values()}
            for number in watched.keys() - current.keys():
                watched[number].close()
            watched = current
            for partition, run in runs.items():
                try:
                    self._check(partition, run)
                except (UnavailableError, SnapshotError) as error:
                    logger.warning("the watchdog cannot read partition %d: %s", partition, error)
                    if isinstance(error, SnapshotError):
                        self._go_back(partition, run.number, error)
            self._measure_lag(runs)
        for scan in watched.values():
            scan.close()

    def _measure_lag(self, runs: Mapping[int, PartitionRun]) -> None:
        try:
            heads = {p: b.next_offset for p, b in self._engines.log.bounds(self._topic).items() if p in runs}
        except UnavailableError:
            return  # the fetch loop tells
        now = self._engines.clock.monotonic_seconds()
        done = {partition: run.sent_next for partition, run in runs.items()}
        self._lag.observe(heads, now)
        self._lag.forget(done)
        self._engines.metrics.set_lag(self._collection, "embed", self._lag.records(done), self._lag.seconds(done, now))

    def _check(self, partition: int, run: PartitionRun) -> None:
        sent = run.sent_next
        behind, ahead = False, False
        if run.scan.chain.expected < sent or sent == run.checked_next:
            end = run.scan.advance()
            behind = end < run.checked_next  # two looks in a row: what was sent a whole interval ago must be in the chain
            ahead = end > run.fetched_next
        if behind or ahead:
            what = "behind" if behind else "ahead of"
            self._go_back(partition, run.number, UnavailableError(f"the chain stands at {run.scan.chain.expected}, {what} what this worker wrote"))
        run.checked_next = sent
