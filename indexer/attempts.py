"""Attempts that survive the worker: how often its lives ended at the same media offset, kept in the group's committed metadata.

A record that ends the whole worker (a crash in the encoder, the kernel's out-of-memory killer) leaves nobody to reject it. So
each life writes down where it begins before it works on the first record there. The group's metadata, JSON in ASCII:

    {"attempts": lives that began at the committed offset, "alone": lives that worked on its record alone, "careful_next": offset}

The third life at one offset goes on record by record (`indexer.careful`) up to ``careful_next``; a record that two lives worked
on alone, and did not survive, is rejected.

Takes: a group reader. Gives: how careful to be. Owns: the metadata's form.
Never: moves the group's offset backward, or counts a life that ended in order.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from contracts.log import CommittedOffset, GroupReader

CAREFUL_AFTER = 2
"""Lives that ended in company at one offset before the next is careful."""
REJECT_AFTER = 2
"""Lives that ended with a record alone before it is rejected: one may have been killed for another reason."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """What is known of the record at which a partition goes on."""

    attempts: int = 0
    alone: int = 0
    careful_next: int = 0

    @classmethod
    def from_metadata(cls, metadata: str) -> Attempts:
        """Read the group's metadata; nothing is known where it has another form (older versions wrote none)."""
        try:
            found = json.loads(metadata)
            return cls(*(max(0, int(found.get(name, 0))) for name in ("attempts", "alone", "careful_next")))
        except (ValueError, TypeError, AttributeError):
            return cls()

    def to_metadata(self) -> str:
        """The group's metadata; empty where there is nothing to tell."""
        told = {name: value for name, value in asdict(self).items() if value}
        return json.dumps(told, separators=(",", ":")) if told else ""


class AttemptBook:
    """The attempts of one worker's partitions; used by its fetch thread alone."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[int, Attempts]] = {}  # partition -> where this life began, and what earlier lives left there
        self._stored: dict[int, tuple[int, Attempts]] = {}  # partition -> the group's offset and what it says, as this life read or wrote it last

    def start(self, reader: GroupReader, partition: int, offset: int) -> Attempts:
        """What earlier lives left behind at `offset`, where a partition starts (again): the group is asked, another member may have had it.

        Raises
        ------
        UnavailableError
            The group cannot be asked.
        """
        self._stored.pop(partition, None)
        return self.earlier(reader, partition, offset)

    def earlier(self, reader: GroupReader, partition: int, offset: int) -> Attempts:
        """What earlier lives left behind at `offset`; the group is asked only once, since nobody else writes while this life has the partition."""
        begun, before = self._begun.get(partition, (-1, Attempts()))
        if begun == offset:  # this life was here before, and goes on after an error that it survived
            return before
        if partition not in self._stored:
            committed = reader.committed(partition)
            self._stored[partition] = (-1, Attempts()) if committed is None else (committed.offset, Attempts.from_metadata(committed.metadata))
        stored, found = self._stored[partition]
        return found if stored == offset else Attempts(careful_next=found.careful_next)

    def begin(self, reader: GroupReader, partition: int, offset: int) -> None:
        """Write down that this life begins at `offset`, in company; returns when that is stored."""
        before = self.earlier(reader, partition, offset)
        self._write(reader, partition, offset, before, replace(before, attempts=before.attempts + 1))

    def begin_alone(self, reader: GroupReader, partition: int, offset: int, careful_next: int) -> None:
        """Write down that this life works on the record at `offset` alone; returns when that is stored."""
        before = self.earlier(reader, partition, offset)
        self._write(reader, partition, offset, before, replace(before, alone=before.alone + 1, careful_next=careful_next))

    def forget(self, reader: GroupReader, partition: int, offset: int) -> None:
        """A life that ends in order: what it began at `offset` is not held against the record."""
        begun, before = self._begun.get(partition, (-1, Attempts()))
        if begun == offset:
            self._write(reader, partition, offset, before, before)

    def _write(self, reader: GroupReader, partition: int, offset: int, before: Attempts, now: Attempts) -> None:
        if self._stored.get(partition, (-1, now))[0] <= offset:
            reader.commit(partition, CommittedOffset(offset, now.to_metadata()), is_awaited=True)
            self._stored[partition] = (offset, now)
        self._begun[partition] = (offset, before)


def is_careful(earlier: Attempts, offset: int) -> bool:
    """Whether the record at `offset` is to be worked on alone."""
    return earlier.attempts >= CAREFUL_AFTER or earlier.alone > 0 or offset < earlier.careful_next
