"""Dead letters against verdicts, judged (pure): each rejected item has its copy in the dead-letter topic.

Takes: rejecting runs, and which items the topic's letters name. Gives: findings, and what is to be sent again. Owns: what retention excuses.
Never: keeps a letter's bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from contracts.ledger import LedgerRun
from contracts.media_origin import Items
from indexer.verify.findings import Finding


@dataclass
class Letters:
    """What a partition of the dead-letter topic holds of one index: the items by media offset, and whether its oldest records are gone."""

    items: dict[int, set[int]] = field(default_factory=dict)
    is_truncated: bool = False

    def add(self, offset: int, items: Items) -> None:
        """Take a letter."""
        known = self.items.setdefault(offset, set())
        for start, end in items.runs:
            known.update(range(start, end))

    @property
    def oldest(self) -> int:
        """Below this media offset letters may have been removed by retention: they are written in the order of their records."""
        return 0 if not self.is_truncated else min(self.items, default=2**63)


@dataclass(frozen=True, slots=True)
class MissingLetter:
    """A rejected record whose dead letter is not there: its items, each with reason and whether a part of it is indexed."""

    partition: int
    offset: int
    items: Mapping[int, tuple[str, bool]]


def missing_letters(runs: Iterable[LedgerRun], letters: Letters, partition: int) -> tuple[list[MissingLetter], list[int]]:
    """Records whose rejected items no letter names, and the offsets of those that retention has removed."""
    wanted: dict[int, dict[int, tuple[str, bool]]] = {}
    for run in runs:
        for offset in range(run.start_offset, run.next_offset):
            known = letters.items.get(offset, set())
            missing = [item for item in range(run.start_item, run.next_item) if item not in known]
            for item in missing:
                wanted.setdefault(offset, {})[item] = (run.reason or "", run.partial)
    expired = [offset for offset in wanted if offset < letters.oldest]
    return [MissingLetter(partition, offset, items) for offset, items in sorted(wanted.items()) if offset >= letters.oldest], sorted(expired)


def extra_letters(runs: Iterable[LedgerRun], letters: Letters, next_offset: int) -> int:
    """Letters below `next_offset` of which no item was rejected."""
    rejected = {offset for run in runs for offset in range(run.start_offset, run.next_offset)}
    return sum(offset < next_offset and offset not in rejected for offset in letters.items)


def describe_missing(letter: MissingLetter) -> Finding:
    """The finding of a missing letter."""
    items, reasons = Items.of(letter.items), sorted({reason for reason, _ in letter.items.values()})
    what = f"items {items} were rejected ({', '.join(reasons)}), the topic has no dead letter of them"
    return Finding("dead_letter_missing", what, partition=letter.partition).at_items(letter.offset, items.runs[0][0], items.runs[-1][1])


def describe_expired(offsets: list[int], partition: int) -> Iterator[Finding]:
    """One note about letters that retention has removed."""
    if offsets:
        what = f"dead letters of {len(offsets)} records"
        yield Finding("dead_letter_expired", what, partition=partition, start_offset=offsets[0], next_offset=offsets[-1] + 1)
