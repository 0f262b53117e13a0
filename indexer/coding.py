"""What an index's builders do beside sealing: look for generations, train, and re-encode flat segments, one thing at a time in the background.

    turn: take what ended -> hand a re-encoded part to the worker, which commits it between two seals -> begin the next job

Takes: the builders of this process, once a turn. Gives: re-encoded parts to commit. Owns: the order of work, and when to try again.
Never: commits; holds up a turn for longer than it takes to start a thread.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from contracts.codec import FLAT
from contracts.collection import CollectionRecord, FieldRecord
from contracts.engines import Engines
from contracts.errors import SnapshotError, UnavailableError
from contracts.manifest import SegmentEntry
from contracts.segment import FIELD_PART_PREFIX
from indexer.background import Background, Finished, Job
from indexer.index_codecs import IndexCodecs
from indexer.partition_builder import PartitionBuilder
from indexer.recode import PartPlace, RecodedPart, recode_part, upload_again
from indexer.train_index import IndexTrainer, Trained, find_quantizers
from indexer.ulids import UlidSource
from vectors.quantizer import Quantizer
from vectors.train import TrainingStopped

logger = logging.getLogger(__name__)
LOOK_SECONDS = 60.0
"""How often a builder whose own partition is too small looks whether another one's builder has trained."""
RETRY_SECONDS = 10.0

Outcome = Trained | RecodedPart | None


@dataclass(frozen=True, slots=True)
class _Task:
    """What runs: for a training its partition and fields, for a re-encoding its partition and the flat part's key, `again` where it came too late."""

    partition: int
    names: frozenset[str] = frozenset()
    key: str = ""
    again: bool = False


class IndexCoding:
    """The background work of one index in one process.

    Parameters
    ----------
    engines : Engines
        Store, settings, metrics, clock.
    collection : CollectionRecord
        Whose index this is.
    codecs : IndexCodecs
        Shared with the builders: what is trained or found is adopted there.
    ulids : UlidSource
        The worker's.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, codecs: IndexCodecs, ulids: UlidSource) -> None:
        self.engines, self.codecs, self.ulids = engines, codecs, ulids
        self._trainer = IndexTrainer(engines, collection, codecs)
        self._background: Background[Outcome] = Background(f"coding-{collection.name}")
        self._task = _Task(-1)
        self._ready: RecodedPart | None = None
        self._look_at: dict[tuple[int, str], int] = {}
        self._refused: set[str] = set()
        self._next_look = self._not_before = 0.0

    def close(self) -> None:
        """End what runs, or leave it to end with the process: nothing of it is committed."""
        self._background.close(self.engines.settings.stop_seconds / 2)

    def turn(self, builders: Mapping[int, PartitionBuilder]) -> RecodedPart | None:
        """Go on; returns a part that its builder can commit now, once."""
        if self.codecs.index.codec == FLAT:
            return None
        finished = self._background.take()
        if finished is not None:
            self._settle(finished, builders)
        ready = self._ready
        if ready is not None:
            builder = builders.get(ready.partition)
            if builder is not None and builder.is_committing:
                return None  # what is being sealed has older ULIDs by now, and goes first
            self._ready = None
            return ready if builder is not None else None
        if self._background.is_free and self.engines.clock.monotonic_seconds() >= self._not_before:
            job = self._next_job(builders)
            if job is not None:
                self._background.start(job)
        return None

    def upload_again(self, part: RecodedPart, builder: PartitionBuilder) -> None:
        """A part came too late for its ULID: store it under a new one, then hand it out again."""
        place = self._place(builder)
        self._task = _Task(part.partition, key=part.replaced.key, again=True)
        self._background.start(lambda stop: upload_again(place, part))

    def holds(self, partition: int) -> bool:
        """True while a part of the partition is stored again: begin no seal, which would overtake it once more."""
        return self._task.again and self._task.partition == partition and not self._background.is_free

    def retry_later(self) -> None:
        """Begin nothing for a while."""
        self._not_before = self.engines.clock.monotonic_seconds() + RETRY_SECONDS

    # ---- what ended ----------------------------------------------------------------------------------------------------

    def _settle(self, finished: Finished[Outcome], builders: Mapping[int, PartitionBuilder]) -> None:
        task, result, error = self._task, finished.result, finished.error
        if isinstance(result, Trained):
            for quantizer in result.quantizers.values():
                self.codecs.adopt(quantizer)
            self._look_at.update({(task.partition, name): rows for name, rows in result.look_again.items()})
        elif isinstance(result, RecodedPart):
            self._ready = result
        elif error is None and task.partition in builders:
            builders[task.partition].coded.add(task.key)
        elif isinstance(error, UnavailableError | SnapshotError):
            logger.warning("training or re-encoding, trying again: %s", error)
            self.retry_later()
            if isinstance(error, SnapshotError) and task.partition in builders:
                builders[task.partition].look_again()
        elif error is not None and not isinstance(error, TrainingStopped):
            logger.error("training or re-encoding is given up, segments stay as they are: %s", error, exc_info=error)
            self._refused.add(task.key)
            self._look_at.update({(task.partition, name): sys.maxsize for name in task.names})

    # ---- what comes next -----------------------------------------------------------------------------------------------

    def _next_job(self, builders: Mapping[int, PartitionBuilder]) -> Job[Outcome] | None:
        untrained = {f.name for f in self.codecs.index.fields if all(self.codecs.chosen(f, b.manifest) is None for b in builders.values())}
        return (self._training(builders, untrained) or self._look(untrained) if untrained and builders else None) or self._recoding(builders)

    def _training(self, builders: Mapping[int, PartitionBuilder], untrained: set[str]) -> Job[Outcome] | None:
        for partition, builder in builders.items():
            manifest, least = builder.manifest, self.engines.settings.train_rows
            due = {name for name in untrained if manifest.rows >= self._look_at.get((partition, name), least)}
            if due:
                self._task = _Task(partition, frozenset(due))
                return lambda stop, m=manifest, d=due: self._trainer.run(m, d, stop)  # type: ignore[misc]
        return None

    def _look(self, untrained: set[str]) -> Job[Outcome] | None:
        now = self.engines.clock.monotonic_seconds()
        if now < self._next_look:
            return None
        self._next_look, self._task = now + LOOK_SECONDS, _Task(-1)
        return lambda stop: Trained(find_quantizers(self.codecs, untrained))

    def _recoding(self, builders: Mapping[int, PartitionBuilder]) -> Job[Outcome] | None:
        for partition, builder in builders.items():
            for field in self.codecs.index.fields:
                quantizer = self.codecs.chosen(field, builder.manifest)
                segment = None if quantizer is None else self._flat_segment(builder, field)
                if quantizer is not None and segment is not None:
                    self._task = _Task(partition, key=segment.parts[FIELD_PART_PREFIX + field.name].key)
                    place = self._place(builder)
                    return lambda stop, p=place, s=segment, f=field, q=quantizer: self._recode(p, s, f, q)  # type: ignore[misc]
        return None

    def _flat_segment(self, builder: PartitionBuilder, field: FieldRecord) -> SegmentEntry | None:
        for segment in builder.manifest.segments:
            entry = segment.parts.get(FIELD_PART_PREFIX + field.name)
            if entry is not None and entry.key not in builder.coded and entry.key not in self._refused:
                return segment
        return None

    def _recode(self, place: PartPlace, segment: SegmentEntry, field: FieldRecord, quantizer: Quantizer) -> RecodedPart | None:
        with self.engines.metrics.stage.labels("recode").time():
            return recode_part(place, segment, field, quantizer, self.engines.settings.train_threads)

    def _place(self, builder: PartitionBuilder) -> PartPlace:
        return PartPlace(self.engines.store, builder.source.keys, builder.committer.epoch, self.ulids)
