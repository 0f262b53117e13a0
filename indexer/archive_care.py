"""How an archiver goes on where its earlier lives ended, as the embed worker does (`indexer.attempts`).

    counted at its first record -> the third life at one offset goes record by record, each written down first -> what two lives ended with
    is kept unread

An archive's checkpoint moves only with its tars. So the records that are walked one by one become a tar of their own, and the count begins anew
behind it.

Takes: records on their way into tars. Gives: which of them are not to be looked into. Owns: the attempts of one worker's partitions.
Never: loses a record: what cannot be read is archived byte by byte, and found again by its key.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from contracts.errors import HeadwaterError
from contracts.log import GroupReader, LogRecord
from indexer.attempts import REJECT_AFTER, AttemptBook, is_careful

logger = logging.getLogger(__name__)
CAREFUL_RECORDS = 256
"""Records that are walked one by one, each written down in the group first, before the archiver is quick again."""


class ArchiveCare:
    """The attempts of one archive worker; used by its thread alone."""

    def __init__(self) -> None:
        self._book = AttemptBook()
        self._begun: dict[int, int] = {}  # partition -> offset at which an attempt is written down
        self._careful: dict[int, int] = {}  # partition -> end of its walk

    def start(self, reader: GroupReader, partition: int, offset: int, head: int) -> None:
        """See what earlier lives left at `offset`, where the partition goes on; the log ends at `head`.

        Raises
        ------
        UnavailableError
            The group cannot be asked.
        """
        self._begun.pop(partition, None)
        self._careful.pop(partition, None)
        earlier = self._book.start(reader, partition, offset)
        if is_careful(earlier, offset):
            self._careful[partition] = min(head, max(earlier.careful_next, offset + CAREFUL_RECORDS))
            logger.warning("partition %d: earlier archivers ended here; offsets %d to %d go one by one", partition, offset, self._careful[partition])

    def is_unread(self, reader: GroupReader, record: LogRecord, next_offset: int) -> bool:
        """Write down that this life works on the record, where that matters; True where the record must not be looked into.

        Parameters
        ----------
        reader : GroupReader
            The worker's.
        record : LogRecord
            The next one of its partition.
        next_offset : int
            Where the partition's archive stands.

        Raises
        ------
        UnavailableError
            It could not be written down: do not work on the record.
        """
        partition = record.partition
        if partition not in self._careful:
            if partition not in self._begun:
                self._book.begin(reader, partition, next_offset)
                self._begun[partition] = next_offset
            return False
        if self._book.earlier(reader, partition, record.offset).alone >= REJECT_AFTER:
            logger.error("partition %d: the record at %d ended %d archivers; it is archived unread", partition, record.offset, REJECT_AFTER)
            return True
        self._book.begin_alone(reader, partition, record.offset, self._careful[partition])
        self._begun[partition] = record.offset
        return False

    def is_walked(self, partition: int, next_offset: int) -> bool:
        """Whether a walk ends here: close the tar, and the partition is quick again."""
        if next_offset < self._careful.get(partition, next_offset + 1):
            return False
        self._careful.pop(partition)
        self._begun.pop(partition, None)
        return True

    def forget(self, reader: GroupReader, partitions: Collection[int] | None = None) -> None:
        """The work on these partitions (all, where it is None) ends in order: no record is to blame."""
        for partition, offset in list(self._begun.items()):
            if partitions is None or partition in partitions:
                self._begun.pop(partition)
                try:
                    self._book.forget(reader, partition, offset)
                except HeadwaterError as error:
                    logger.warning("an attempt stays counted: %s", error)
