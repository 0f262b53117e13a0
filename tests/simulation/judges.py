"""Who judges one incarnation of the collection: of each partition a reference, the audit of its manifests and views, and that of its archive."""

from __future__ import annotations

from dataclasses import dataclass

from backends.memory_store import MemoryStore
from contracts.collection import CollectionRecord
from contracts.log import LogRecord
from contracts.manifest import Manifest, ReadVersion
from contracts.object_keys import parse_key
from indexer.dead_letter import read_dead_letter
from query.partition_view import PartitionView
from tests.simulation.audit import Audit
from tests.simulation.audit_archive import ArchiveAudit
from tests.simulation.faulty_log import kind_of
from tests.simulation.reference import Fail, Reference


@dataclass
class Judge:
    """What judges one partition."""

    reference: Reference
    audit: Audit
    archive: ArchiveAudit


class Judges:
    """All partitions of one incarnation; what belongs to an older one matters to nobody."""

    def __init__(self, record: CollectionRecord, store: MemoryStore, fail: Fail) -> None:
        self.record, self.fail = record, fail
        self.partitions: list[Judge] = []
        for number in range(record.partitions):
            reference = Reference(record, fail)
            self.partitions.append(Judge(reference, Audit(reference, store, fail, number), ArchiveAudit(reference, store, fail, number)))

    @property
    def records(self) -> int:
        """Records of the media topic, over all partitions."""
        return sum(len(judge.reference.media) for judge in self.partitions)

    def stored(self, key: str, data: bytes) -> None:
        """An object was stored."""
        judge = self._judge(key)
        if judge is not None and "/manifest/" in key:
            (judge.archive if "/archive/" in key else judge.audit).manifest(key, data)

    def deleted(self, key: str) -> None:
        """An object was deleted."""
        judge = self._judge(key)
        if judge is not None:
            (judge.archive if "/archive/" in key else judge.audit).deleted(key)

    def _judge(self, key: str) -> Judge | None:
        if f"-{self.record.incarnation}/" not in key or "/p0" not in key:
            return None
        parsed = parse_key(key)
        if parsed is None:
            self.fail(f"{key} is no key")
        return self.partitions[int(parsed.fields["partition"])]  # type: ignore[union-attr]

    def appended(self, record: LogRecord) -> None:
        """A record landed in a topic."""
        kind = kind_of(record.topic)
        if kind == "vectors":
            self.partitions[record.partition].reference.land(record)
        elif kind == "media":
            self.partitions[record.partition].reference.media.append(record)
        elif kind == "dead-letter":
            self._dead_letter(record)

    def _dead_letter(self, record: LogRecord) -> None:
        """A dead letter is acknowledged or not, but it is there."""
        letter = read_dead_letter(record)
        if letter is None:
            self.fail("a dead letter cannot be read")
        elif letter.incarnation == self.record.incarnation:
            self.partitions[letter.partition].reference.dead_letters.add(letter.offset)

    def believed(self, writer: str, read: ReadVersion) -> None:  # type: ignore[type-arg]
        """A committer believes that it has committed."""
        manifest = read.manifest
        if manifest.incarnation == self.record.incarnation:
            judge = self.partitions[manifest.partition]  # type: ignore[attr-defined]
            (judge.audit if isinstance(manifest, Manifest) else judge.archive).believed(writer, read)

    def view(self, name: str, view: PartitionView, before: PartitionView | None) -> None:
        """A node shows something new of a partition."""
        self.partitions[view.partition].audit.view(name, view, before)
