"""How far one stage is behind a topic, for `headwater_lag_records` and `headwater_lag_seconds`; right while it is paused, and after a restart.

Takes: offsets that are done, by partition. Gives: the two metrics. Owns: the observations of the topic's heads; which partitions were told of.
Never: believes a record's time beyond the collection's own age, or asks for more than one record of a partition at a look.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from contracts.attributes import parse_time
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.head_lag import HeadLag


class StageLag:
    """Lag of one stage of one collection; used by one thread.

    Parameters
    ----------
    engines : Engines
        Log, metrics, clock.
    collection : CollectionRecord
        Whose stage it is. Nothing can have waited for it for longer than it is there.
    topic : str
        What the stage reads.
    stage : str
        Name of the stage in the metrics.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, topic: str, stage: str) -> None:
        self._engines, self._topic, self._stage = engines, topic, stage
        self._name = collection.name
        self._created_seconds = parse_time(collection.created_at) / 1e6
        self._lag = HeadLag()
        self._told: set[int] = set()

    def measure(self, done: Mapping[int, int], owned: Collection[int]) -> None:
        """Set both metrics.

        Parameters
        ----------
        done : Mapping of int to int
            First offset that is not done of each partition that is worked on, or paused.
        owned : Collection of int
            All partitions of this worker: of one that is in neither, its new worker tells.

        Raises
        ------
        UnavailableError
            The log does not answer.
        """
        now = self._engines.clock.monotonic_seconds()
        heads = {p: b.next_offset for p, b in self._engines.log.bounds(self._topic).items() if p in done}
        self._lag.observe(heads, now)
        self._lag.forget(done)
        for partition, offset in done.items():
            if self._lag.is_undated(partition, offset):
                self._lag.found_waiting(partition, offset, now - self._age_seconds(partition, offset))
        metrics = self._engines.metrics
        metrics.set_lag(self._name, self._stage, self._lag.records(done), self._lag.seconds(done, now))
        self._told |= done.keys()
        for gone in self._told - set(owned):
            metrics.forget_lag(self._name, self._stage, gone)
            self._lag.drop(gone)
        self._told &= set(owned)

    def _age_seconds(self, partition: int, offset: int) -> float:
        """For how long the record has lain there, by the log's time of it; 0 where it cannot be asked."""
        try:
            record = self._engines.log.read_at(self._topic, partition, offset)
        except UnavailableError:
            return 0.0
        now = self._engines.clock.now_seconds()
        age = 0.0 if record is None else now - record.timestamp_ms / 1000
        return max(0.0, min(age, now - self._created_seconds))
