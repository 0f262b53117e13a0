"""The journal of a load: what the log has acknowledged, one JSON line per item, and what should be live because of it.

Takes: lines. Gives: `Acknowledged`, the expected rows. Owns: the oracle of all faults. Never: asks log, store or service.

An id has at most one record under way at a time, and one that was not acknowledged is sent again until it is: so the last acknowledged line of an
id says what it should be, whatever became of the attempts before. Such an attempt may have landed too; its line is `unsure` and names no place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Acknowledged:
    """One item that the log has acknowledged; `seq` is the number of the step, by which its vector is made, `at` when it was sent."""

    op: str
    id: str
    seq: int
    partition: int
    offset: int
    item: int
    at: float


@dataclass(frozen=True)
class Expected:
    """What one live id should be: `seq` of its newest upsert, `note` of its newest patch since, and the place of the newest of both."""

    seq: int
    note: int | None
    place: tuple[int, int, int]


@dataclass
class Journal:
    """Everything that one or more loads of a collection wrote."""

    entries: list[Acknowledged] = field(default_factory=list)
    unsure: set[tuple[str, int]] = field(default_factory=set)  # (id, seq) of which another copy may have landed
    is_done: bool = True

    def expected(self) -> tuple[dict[str, Expected], set[str]]:
        """Rows that should be live, and ids that should not."""
        live: dict[str, Expected] = {}
        deleted: set[str] = set()
        for entry in sorted(self.entries, key=lambda each: (each.partition, each.offset, each.item)):
            place = (entry.partition, entry.offset, entry.item)
            before = live.get(entry.id)
            if entry.op == "upsert":
                live[entry.id] = Expected(entry.seq, None, place)
                deleted.discard(entry.id)
            elif entry.op == "patch" and before is not None:
                live[entry.id] = Expected(before.seq, entry.seq, place)
            elif entry.op == "delete":
                live.pop(entry.id, None)
                deleted.add(entry.id)
        return live, deleted

    def give_up(self, offsets: Mapping[int, tuple[int, int]]) -> None:
        """Forget what an operator has called lost: per partition the offsets ``[start, next)``."""
        self.entries = [each for each in self.entries if not _within(each, offsets.get(each.partition, (0, 0)))]

    def ends(self) -> dict[int, int]:
        """Per partition, the offset behind the last acknowledged record."""
        ends: dict[int, int] = {}
        for entry in self.entries:
            ends[entry.partition] = max(ends.get(entry.partition, 0), entry.offset + 1)
        return ends


def _within(entry: Acknowledged, span: tuple[int, int]) -> bool:
    return span[0] <= entry.offset < span[1]


def read_journals(paths: Iterable[Path]) -> Journal:
    """Journals of one collection, in any order: offsets order them."""
    out = Journal()
    for path in paths:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        for line in lines:
            if line["op"] == "unsure":
                out.unsure.add((line["id"], line["seq"]))
            elif line["op"] != "done":
                out.entries.append(Acknowledged(**line))
        out.is_done = out.is_done and any(line["op"] == "done" for line in lines)
    return out


def write_journal(path: Path, entries: Sequence[Acknowledged]) -> None:
    """A complete journal, for loads that a fault makes by itself."""
    lines = [json.dumps(asdict(entry)) for entry in entries] + [json.dumps({"op": "done"})]
    path.write_text("\n".join(lines) + "\n")
