"""What an audit finds: typed values with code, place, and what to do (docs/verify.md lists the codes).

Takes: single findings. Gives: them in order, counted, with the exit code that they mean. Owns: the codes and their levels.
Never: reads or writes anything; keeps more than `MOST_PER_CODE` findings of one code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

Level = Literal["fault", "warning", "note"]
EXIT_CODES: dict[Level, int] = {"fault": 6, "warning": 1, "note": 0}
"""6 is that of `contracts.errors.CorruptError`: stop and alert, repeating cannot help."""
MOST_PER_CODE = 1000
"""Findings of one code that are kept; all are counted."""


@dataclass(frozen=True, slots=True)
class Code:
    """What a code means, how bad it is, and what to do."""

    level: Level
    meaning: str
    hint: str


_RESTORE = "restore the object from a backup or an older version of it; else build the collection anew from its topic or archive"
_REBUILD = "stop the partition's builder and compactor, keep the store as it is and report this; a new collection on the topic starts afresh"

CODES: dict[str, Code] = {
    "object_missing": Code("fault", "an object that the newest manifest names is not in the store", _RESTORE),
    "object_damaged": Code("fault", "an object's size or hash is not what the manifest (or its own key) says", _RESTORE),
    "object_unreadable": Code("fault", "an object has the bytes that were written, but they contradict the manifest or themselves", _REBUILD),
    "manifest_missing": Code("fault", "a version above the boundary is gone while a later one is there, or there is none at all", _RESTORE),
    "manifest_replaced": Code("fault", "a version's bytes are not those that the next version names as its `previous`", _RESTORE),
    "manifest_unreadable": Code("fault", "a manifest, boundary or collection record cannot be read", _RESTORE),
    "manifest_out_of_order": Code("fault", "checkpoint or epoch went back, or origin or identity changed, from one version to the next", _RESTORE),
    "offsets_without_verdict": Code("fault", "media offsets between origin and checkpoint that no ledger speaks of", _REBUILD),
    "offsets_with_two_verdicts": Code("fault", "media offsets that two ledgers speak of", _REBUILD),
    "items_without_verdict": Code("fault", "items of a record below others of it, of which no ledger speaks", _REBUILD),
    "items_with_two_verdicts": Code("fault", "items of which two runs of a ledger speak", _REBUILD),
    "row_missing": Code("fault", "the ledger says that an item is a row, and no segment holds it", _REBUILD),
    "row_twice": Code("fault", "one item is stored as two rows", _REBUILD),
    "row_without_verdict": Code("fault", "a stored row of which the ledger says that it is none", _REBUILD),
    "segment_disordered": Code("fault", "rows of a segment are out of order or outside the segment's offsets", _REBUILD),
    "id_index_wrong": Code("fault", "the id hashes of a segment are not those of its ids: updates and deletes would miss them", _REBUILD),
    "delete_out_of_range": Code("fault", "a delete delta names a row that its segment does not have", _REBUILD),
    "id_twice": Code("fault", "an id has two live rows in one partition", _REBUILD),
    "deleted_row_live": Code("fault", "a live row is older than a delete of its id", _REBUILD),
    "row_dead_without_cause": Code("fault", "a row is marked as deleted, and nothing newer of its id is stored", _REBUILD),
    "id_in_two_partitions": Code(
        "warning",
        "an id is live in two partitions, so that searches find it twice",
        "keep an id's records in one partition: give the collection a partitioner, or mend the producers' key; delete the id in the wrong partition",
    ),
    "tar_disagrees": Code("fault", "a tar of the archive and its index contradict each other", _RESTORE),
    "archive_offsets_twice": Code("fault", "media offsets that the archive holds and calls lost", _RESTORE),
    "record_not_archived": Code("fault", "the ledger knows items of a record that the archive should hold and does not", _RESTORE),
    "gap_holds_record": Code("fault", "the archive holds a record at an offset that the ledger calls a gap: it was never indexed", _REBUILD),
    "dead_letter_missing": Code(
        "fault", "an item was rejected, and its dead letter is not in the topic", "headwater verify --repair sends it again where the record still is"
    ),
    "offsets_forgotten": Code(
        "fault",
        "the media topic no longer holds records that were never embedded",
        "raise the topic's retention; a new collection with --source-topic begins at the oldest record that is left",
    ),
    "batches_forgotten": Code("fault", "the vectors topic no longer holds the batch at which the checkpoint stands", "restore the topic"),
    "log_shorter": Code("fault", "a topic ends below what was read from it", "the topic lost acknowledged records; check the brokers"),
    "topic_changed": Code("fault", "cluster or topic are others than the manifests were written for", "connect to the right cluster, or restore it"),
    "topic_missing": Code("fault", "a topic of the collection does not exist", "connect to the right cluster, or restore the topic"),
    "partitions_differ": Code(
        "warning", "the media topic has other partitions than the collection", "create a new collection on the topic; this one has stopped"
    ),
    "orphan": Code("note", "objects that no manifest names", "`headwater verify --repair` deletes those that are surely dead"),
    "offsets_lost": Code("note", "media offsets that an operator gave up, or that retention took before they were archived", ""),
    "dead_letter_expired": Code("note", "dead letters that the topic's retention has removed", ""),
    "dead_letter_extra": Code("note", "dead letters of items that another worker's batch did not reject", ""),
    "not_checked": Code("note", "something that could not be compared", ""),
}
"""Every code that a finding can have."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    `kind` is a key of `CODES`. Where it is: `index` (None for the archive or the collection), `partition`, the `object`'s key, media offsets
    ``[start_offset, next_offset)``, of one offset the items ``[start_item, next_item)``, and the `id`; each None where it does not apply.
    """

    kind: str
    what: str
    index: str | None = None
    partition: int | None = None
    object: str | None = None
    start_offset: int | None = None
    next_offset: int | None = None
    start_item: int | None = None
    next_item: int | None = None
    id: str | None = None

    @property
    def code(self) -> Code:
        """What the code means."""
        return CODES[self.kind]

    def at(self, start_offset: int, next_offset: int) -> Finding:
        """The same, at these media offsets."""
        return replace(self, start_offset=start_offset, next_offset=next_offset)

    def at_items(self, offset: int, start_item: int, next_item: int) -> Finding:
        """The same, at these items of one media offset."""
        return replace(self, start_offset=offset, next_offset=offset + 1, start_item=start_item, next_item=next_item)


@dataclass
class Findings:
    """Findings as they come: the first of each code are kept, all are counted."""

    kept: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        """Take one finding."""
        if finding.kind not in CODES:
            raise ValueError(f"unknown code {finding.kind!r}")
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= MOST_PER_CODE:
            self.kept.append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take several."""
        for finding in findings:
            self.add(finding)

    def join(self, others: Findings) -> None:
        """Take what another collector kept and counted."""
        for finding in others.kept:
            self.add(finding)
        for kind, count in others.counts.items():
            self.counts[kind] += count - sum(finding.kind == kind for finding in others.kept)

    def of(self, kind: str) -> list[Finding]:
        """Those that were kept of one code."""
        return [finding for finding in self.kept if finding.kind == kind]

    @property
    def level(self) -> Level | None:
        """The worst level; None where nothing was found."""
        levels = {CODES[kind].level for kind, count in self.counts.items() if count}
        return next((level for level in EXIT_CODES if level in levels), None)

    @property
    def exit_code(self) -> int:
        """Exit code of the worst level."""
        return 0 if self.level is None else EXIT_CODES[self.level]
