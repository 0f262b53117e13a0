"""All versions of all ids of one index, put on disk segment by segment and judged window by window.

Takes: rows of segments, tombstones of deltas. Gives: findings, with the ids in full. Owns: numbers of who holds a version.
Never: tells of two equal ids before it has compared them in full.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from backends.catalog.objects import download
from contracts.deletes import Tombstone
from contracts.errors import CorruptError, SnapshotError
from contracts.manifest import ObjectEntry
from contracts.segment import RowsPart, read_rows_part
from contracts.store import ObjectStore
from indexer.verify.findings import MOST_PER_CODE, Finding, Findings
from indexer.verify.id_check import Held, IdVerdict, check_ids, tombstone_columns
from indexer.verify.segment_check import ID_COLUMNS, id_columns
from indexer.verify.spill import Spill


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a version: a segment's rows, or (None) the deletes of a partition."""

    partition: int
    rows: ObjectEntry | None


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    offset: int
    item: int
    owner: Owner

    @property
    def where(self) -> str:
        return f"{self.owner.partition}/{self.offset}/{self.item}"


@dataclass
class IdVersions:
    """Versions of the ids of one index.

    Parameters
    ----------
    store : ObjectStore
        Where rows are read again, to compare ids in full.
    index : str
        Which index findings name.
    folder : Path
        Where versions are put; about 60 bytes each.
    """

    store: ObjectStore
    index: str
    folder: Path
    without_deletes: set[int] = field(default_factory=set, init=False)
    """Partitions of which a delete delta could not be read: whether a row is live is not known there."""
    without_causes: set[int] = field(default_factory=set, init=False)
    """Partitions in which a newer version of a dead row may be gone for good, or could not be read."""
    dead: Counter[tuple[int, str]] = field(default_factory=Counter, init=False)
    """Dead rows by (partition, state), once `judge` has run."""

    def __post_init__(self) -> None:
        self._spill = Spill(self.folder, ID_COLUMNS, "high")
        self._owners: list[Owner] = []

    def add_rows(self, partition: int, entry: ObjectEntry, part: RowsPart, deleted: BitMap, hashes: NDArray[np.uint64]) -> None:
        """Take a segment's rows; `hashes`, shape (n, 2), are those of their ids."""
        self._spill.add(id_columns(part, self._own(partition, entry), deleted, hashes))

    def add_tombstones(self, partition: int, tombstones: Sequence[Tombstone]) -> None:
        """Take the deletes of one delta."""
        if tombstones:
            self._spill.add(tombstone_columns(tombstones, self._own(partition, None)))

    def _own(self, partition: int, rows: ObjectEntry | None) -> int:
        self._owners.append(Owner(partition, rows))
        return len(self._owners) - 1

    def mark(self) -> int:
        """Where it stands, for `rewind`."""
        return self._spill.mark()

    def rewind(self, mark: int) -> None:
        """Forget what was taken since: the partition is read again."""
        self._spill.rewind(mark)

    def judge(self, findings: Findings, tell: Callable[[int, int], None]) -> None:
        """Judge every id; `tell` is called with how many versions are done, and how many there are."""
        partitions = np.array([owner.partition for owner in self._owners], np.int64)
        done, total = 0, len(self._spill)
        for low, high in self._spill.windows():
            columns = self._spill.between(low, high)
            verdict = check_ids(columns, partitions)
            self.dead.update(verdict.dead)
            self._tell(verdict, findings)
            done += len(columns["high"])
            tell(done, total)
        self._spill.close()

    def _tell(self, verdict: IdVerdict, findings: Findings) -> None:
        twice = [pair for pair in verdict.twice if self._partition(pair[0]) not in self.without_deletes]
        apart = [pair for pair in verdict.apart if not {self._partition(one) for one in pair} & self.without_deletes]
        outlived = [one for one in verdict.outlived if self._partition(one) not in self.without_deletes]
        causeless = [one for one in verdict.causeless if self._partition(one) not in self.without_causes | self.without_deletes]
        counts = {"id_twice": len(twice), "id_in_two_partitions": len(apart), "deleted_row_live": len(outlived)}
        for kind, count in (*counts.items(), ("row_dead_without_cause", len(causeless))):
            findings.counts[kind] += max(0, count - MOST_PER_CODE)
        pairs = [*twice[:MOST_PER_CODE], *apart[:MOST_PER_CODE]]
        single = [*outlived[:MOST_PER_CODE], *causeless[:MOST_PER_CODE]]
        rows = self._read([*(one for pair in pairs for one in pair), *single])
        for a, b in ((rows.get(a), rows.get(b)) for a, b in pairs):
            if a is None or b is None or a.id != b.id:
                continue  # two ids with one hash, or a segment that has its own finding
            is_one = a.owner.partition == b.owner.partition
            self._found(findings, "id_twice" if is_one else "id_in_two_partitions", f"live at {a.where} and at {b.where}", b)
        for kind, helds in (("deleted_row_live", outlived[:MOST_PER_CODE]), ("row_dead_without_cause", causeless[:MOST_PER_CODE])):
            what = "a newer delete of the id is stored" if kind == "deleted_row_live" else "no newer row or delete of the id is stored"
            for row in (rows.get(held) for held in helds):
                if row is not None:
                    self._found(findings, kind, f"the row at {row.where}: {what}", row)

    def _found(self, findings: Findings, kind: str, what: str, row: _Row) -> None:
        assert row.owner.rows is not None, "only rows are read"
        findings.add(
            Finding(
                kind, what, self.index, row.owner.partition, row.owner.rows.key, row.offset, row.offset + 1, row.item, row.item + 1, id=row.id
            )  # fmt: skip
        )

    def _partition(self, held: Held) -> int:
        return self._owners[held[0]].partition

    def _read(self, helds: Iterable[Held]) -> dict[Held, _Row]:
        """The rows themselves, each segment read once."""
        wanted: dict[int, set[int]] = defaultdict(set)
        for held in helds:
            wanted[held[0]].add(held[1])
        found: dict[Held, _Row] = {}
        for number, rows in wanted.items():
            owner = self._owners[number]
            if owner.rows is None:
                continue
            try:
                batch = read_rows_part(download(self.store, owner.rows), owner.rows.key).batch
            except (SnapshotError, CorruptError):
                continue  # compacted away since, or damaged, which is told elsewhere
            for row in rows:
                item_id, offset, item = (batch.column(name)[row].as_py() for name in ("id", "offset", "item"))
                found[number, row] = _Row(item_id, offset, item, owner)
        return found
