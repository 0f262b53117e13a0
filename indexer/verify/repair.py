"""What can be mended without a risk: dead letters are sent again, and objects that nobody can commit any more are deleted.

Takes: an audit's report. Gives: a plan, then what was done of it. Owns: what is safe.
Never: changes a manifest, a segment, a ledger, a delta or a tar; deletes anything of a collection that has faults in its stored bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from backends.catalog.archive import ArchiveReader
from contracts.engines import Engines
from contracts.errors import CorruptError, HeadwaterError, SettingsError
from contracts.log import LogProducer, LogRecord
from indexer.dead_letter import dead_letter_record
from indexer.slices import Rejection
from indexer.verify.audit import AuditReport
from indexer.verify.dead_letter_check import MissingLetter
from indexer.verify.findings import Finding
from indexer.verify.orphan_check import Orphan

ACKNOWLEDGE_SECONDS = 60.0
MESSAGE = "the dead letter was missing and was sent again by verify"


@dataclass(frozen=True, slots=True)
class PlannedLetter:
    """A dead letter to send again: whose, and where its original is: ``media topic``, ``archive``, or None where it cannot be had any more."""

    index: str
    letter: MissingLetter
    source: str | None


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repair would do; `kept_orphans` says why dead orphans stay where they do."""

    letters: tuple[PlannedLetter, ...]
    orphans: tuple[Orphan, ...]
    kept_orphans: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.orphans and all(letter.source is None for letter in self.letters)


@dataclass
class RepairReport:
    """What a repair did: places of the dead letters that were sent, keys that were deleted, and what failed."""

    sent: list[tuple[str, int, int]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Repair:
    """Plans and does the repair of one collection.

    Parameters
    ----------
    engines : Engines
        Its log and store.
    report : AuditReport
        What the audit found.
    """

    def __init__(self, engines: Engines, report: AuditReport) -> None:
        self.engines, self.report, self.collection = engines, report, report.collection
        self._archive = ArchiveReader(engines.store)

    def plan(self) -> RepairPlan:
        """Look for the originals, and for what may go."""
        letters = tuple(
            PlannedLetter(index, letter, self._original(letter)[1]) for index, missing in sorted(self.report.missing.items()) for letter in missing
        )
        dead = tuple(orphan for orphan in self.report.orphans if orphan.is_dead)
        others = [kind for kind, count in self.report.findings.counts.items() if count and _is_fault_of_bytes(kind)]
        if dead and others:
            return RepairPlan(letters, (), f"{len(dead)} dead objects stay until the faults are mended ({', '.join(sorted(others))})")
        return RepairPlan(letters, dead)

    def run(self, plan: RepairPlan, tell: Callable[[str, int, int], None]) -> RepairReport:
        """Do what was planned; what fails does not stop the rest."""
        report = RepairReport()
        planned = [one for one in plan.letters if one.source is not None]
        producer = self.engines.log.producer() if planned else None
        try:
            for done, one in enumerate(planned):
                tell("sending dead letters", done, len(planned))
                assert producer is not None, "opened where a letter is planned"
                self._send(producer, one, report)
        finally:
            if producer is not None:
                producer.close()
        for done, orphan in enumerate(plan.orphans):
            tell("deleting dead objects", done, len(plan.orphans))
            try:
                self.engines.store.delete(orphan.key)
                report.deleted.append(orphan.key)
            except HeadwaterError as error:
                report.failed[orphan.key] = error.message
        return report

    def _original(self, letter: MissingLetter) -> tuple[LogRecord | None, str | None]:
        found = self.engines.log.read_at(self.collection.source_topic, letter.partition, letter.offset)
        if found is not None:
            return found, "media topic"
        try:
            found = self._archive.read(self.collection, letter.partition, letter.offset)
        except CorruptError:
            found = None  # a damaged tar has its own finding
        return found, None if found is None else "archive"

    def _send(self, producer: LogProducer, planned: PlannedLetter, report: RepairReport) -> None:
        letter, place = planned.letter, f"{planned.letter.partition}/{planned.letter.offset}"
        record, _ = self._original(letter)
        if record is None:
            report.failed[place] = "its record went meanwhile"
            return
        rejections = [Rejection(record, item, reason, MESSAGE, partial) for item, (reason, partial) in sorted(letter.items.items())]
        try:
            self._produce(producer, planned.index, rejections)
            report.sent.append((planned.index, letter.partition, letter.offset))
        except (HeadwaterError, TimeoutError) as error:
            report.failed[place] = str(error)

    def _produce(self, producer: LogProducer, index: str, rejections: list[Rejection]) -> None:
        topic = self.collection.dead_letter_topic
        for leave_out in (False, True):
            made = dead_letter_record(self.collection, index, rejections, leave_out)
            try:
                future = producer.send(topic, partition=made.partition, key=made.key, value=made.value, headers=made.headers)
            except SettingsError:  # larger than the topic takes; without its bytes it is small
                if leave_out:
                    raise
                continue
            future.result(ACKNOWLEDGE_SECONDS)
            return


def _is_fault_of_bytes(kind: str) -> bool:
    return Finding(kind, "").code.level == "fault" and kind != "dead_letter_missing"
