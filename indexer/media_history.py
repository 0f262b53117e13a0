"""The media topic from before its start: what retention took comes from the archive, then the log, in one order of offsets.

    archive, up to where the log begins -> log

So an index can begin at, or have stayed behind at, any offset that either holds, and every record keeps its own offset: newest version wins,
deletes take effect, and the chain of batches goes on as it always does.

Takes: a reader of the log, a collection's archive. Gives: a reader that also goes below the log's start. Owns: which partitions stand there.
Never: passes over an offset that the archive lost, has not come to, or keeps without its media.
"""

from __future__ import annotations

from collections.abc import Iterable

from backends.catalog.archive import ArchiveReader
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, SnapshotError
from contracts.log import Assignment, CommittedOffset, GroupReader, LogReader, LogRecord

READ_BYTES = 8 * 1024 * 1024
"""Bytes of a tar that one read brings, where it holds that many records; a larger record comes alone."""


class MediaHistory:
    """What lies below the start of a collection's media topic; used by one thread.

    Parameters
    ----------
    engines : Engines
        Log and store.
    collection : CollectionRecord
        Whose records these are.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord) -> None:
        self._engines, self._collection = engines, collection
        self._archive = ArchiveReader(engines.store)

    def log_start(self, partition: int) -> int:
        """First offset that the log holds."""
        return self._engines.log.bounds(self._collection.source_topic)[partition].start_offset

    def read(self, partition: int, offset: int, most_records: int) -> tuple[list[LogRecord], int]:
        """Archived records from `offset` on, and the offset behind those that were looked at.

        Raises
        ------
        DataLossError
            The archive does not hold `offset`, or not the bytes that it stored.
        UnavailableError
            The store does not answer.
        """
        where = f"offset {offset} of {self._collection.source_topic}/{partition}"
        try:
            found = self._archive.read_run(self._collection, partition, offset, most_records, READ_BYTES)
        except (CorruptError, SnapshotError) as error:
            raise DataLossError(f"{where}: {error.message}", hint=error.hint) from None
        if found is None:
            raise DataLossError(f"{where} is in the topic no longer, and not whole in the archive")
        return found


class HistoryReader:
    """`contracts.log.LogReader` of a media topic and the archive below its start.

    Parameters
    ----------
    reader : LogReader
        Of the media topic; closed with this one.
    history : MediaHistory
        The rest.
    """

    def __init__(self, reader: LogReader, history: MediaHistory) -> None:
        self._reader, self._history = reader, history
        self._past: dict[int, int] = {}  # partition that is not (yet) read from the log -> next offset
        self._log_starts: dict[int, int] = {}  # partition -> offset from which the log is asked where it begins
        self._paused: set[int] = set()
        self._is_turn_of_past = False

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        """See `contracts.log.LogReader.poll`; what the archive should hold and does not is a DataLossError, too."""
        self._is_turn_of_past = not self._is_turn_of_past  # one source a time: an error of the other must not lose what was read
        if self._is_turn_of_past and (found := self._read_past(max_records)):
            return found
        return self._reader.poll(0.0 if self._past.keys() - self._paused else timeout_seconds, max_records)

    def _read_past(self, max_records: int) -> list[LogRecord]:
        """Records of one partition that stands below the log's start; each poll begins with another one."""
        for partition in [p for p in self._past if p not in self._paused]:
            position = self._past[partition]
            if position >= self._log_starts[partition] and self._enter_log(partition, position):
                continue
            records, next_offset = self._history.read(partition, position, max_records)
            del self._past[partition]
            self._past[partition] = next_offset
            return records
        return []

    def _enter_log(self, partition: int, position: int) -> bool:
        self._log_starts[partition] = self._history.log_start(partition)
        if position < self._log_starts[partition]:
            return False
        del self._past[partition]
        self._reader.seek(partition, position)
        self._reader.resume([partition])
        return True

    def seek(self, partition: int, offset: int) -> None:
        """See `contracts.log.LogReader.seek`; where the log begins is asked by the next `poll`."""
        self._reader.pause([partition])
        self._past[partition] = self._log_starts[partition] = offset

    def pause(self, partitions: Iterable[int]) -> None:
        """See `contracts.log.LogReader.pause`."""
        chosen = list(partitions)
        self._paused.update(chosen)
        self._reader.pause(chosen)

    def resume(self, partitions: Iterable[int]) -> None:
        """See `contracts.log.LogReader.resume`."""
        chosen = list(partitions)
        self._paused.difference_update(chosen)
        self._reader.resume([partition for partition in chosen if partition not in self._past])

    def position(self, partition: int) -> int:
        """See `contracts.log.LogReader.position`."""
        return self._past[partition] if partition in self._past else self._reader.position(partition)

    def close(self) -> None:
        """See `contracts.log.LogReader.close`."""
        self._reader.close()


class HistoryGroupReader(HistoryReader):
    """The same for a member of a consumer group.

    Parameters
    ----------
    reader : GroupReader
        Of the media topic; closed with this one.
    history : MediaHistory
        The rest.
    """

    def __init__(self, reader: GroupReader, history: MediaHistory) -> None:
        super().__init__(reader, history)
        self._group = reader

    def take_assignment(self) -> Assignment | None:
        """See `contracts.log.GroupReader.take_assignment`."""
        change = self._group.take_assignment()
        if change is not None:
            for partition in change.revoked | change.assigned:
                self._past.pop(partition, None)
                self._paused.discard(partition)
        return change

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        """See `contracts.log.GroupReader.commit`."""
        self._group.commit(partition, committed, is_awaited=is_awaited)

    def committed(self, partition: int) -> CommittedOffset | None:
        """See `contracts.log.GroupReader.committed`."""
        return self._group.committed(partition)
