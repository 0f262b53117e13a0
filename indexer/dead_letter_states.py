"""Which dead letters are still dead: the topic is a copy, so each is held against the verdicts and the newest version of its ids.

    dead         rejected, and nothing newer has its id
    partial      a part of the item is indexed, the other part was rejected
    superseded   a newer version of the id came since, an update or a delete
    replayed     it came back, or was rejected again under a later offset
    pending      its batch is not written yet
    accepted     another worker's batch won, which did not reject it

Takes: summaries, verdicts. Gives: states, filtered. Owns: the words above, and how old a dead letter may be to be replayed.
Never: writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import SnapshotError
from contracts.item import VersionOrder, version_order
from indexer.dead_letter_topic import LetterSummary, read_summaries
from indexer.item_verdicts import PartitionVerdicts, Verdict
from indexer.partition_source import PartitionSource

STATES = ("dead", "partial", "pending", "superseded", "replayed", "accepted")
"""In the order in which the state of one item decides about a dead letter of several."""
MAX_REPLAY_DAYS = 30
"""Tombstones are kept 31 days: an older replay could bring back what was deleted."""
SNAPSHOT_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class ListedLetter:
    """A dead letter with its state. `dead_items` are those to replay; `is_whole`: every item of the record was rejected."""

    summary: LetterSummary
    state: str
    states: Mapping[int, str]
    is_whole: bool
    is_too_old: bool

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset of the original."""
        return self.summary.letter.place

    @property
    def dead_items(self) -> list[int]:
        """Items that are dead, wholly or in part."""
        return [item for item, state in self.states.items() if state in ("dead", "partial")]


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant; None and empty mean all. `since_ms`: written at or after, milliseconds since 1970."""

    reasons: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    partition: int | None = None
    since_ms: int | None = None
    places: frozenset[tuple[int, int]] = frozenset()

    def takes(self, listed: ListedLetter) -> bool:
        """Whether it is meant."""
        letter = listed.summary.letter
        return (
            (not self.reasons or bool(self.reasons & set(letter.reasons)))
            and (not self.ids or bool(self.ids & {item_id for item_id in listed.summary.ids.values() if item_id is not None}))
            and (self.partition is None or letter.partition == self.partition)
            and (self.since_ms is None or letter.written_ms >= self.since_ms)
            and (not self.places or letter.place in self.places)
        )

    def partitions(self, collection: CollectionRecord) -> list[int]:
        """Partitions in which something may be meant."""
        named = {self.partition} if self.partition is not None else {partition for partition, _ in self.places} or set(range(collection.partitions))
        return sorted(partition for partition in named if 0 <= partition < collection.partitions)


def list_letters(
    engines: Engines,
    collection: CollectionRecord,
    index: IndexRecord,
    wanted: LetterFilter,
    progress: Callable[[int], None] = lambda records: None,
) -> list[ListedLetter]:
    """Dead letters that the filter takes, with their states, by place.

    Raises
    ------
    DataLossError
        The topics are not those that the index was written for.
    """
    summaries = read_summaries(engines, collection, index, wanted.partitions(collection), progress)
    listed: list[ListedLetter] = []
    for partition in sorted({summary.letter.partition for summary in summaries}):
        mine = [summary for summary in summaries if summary.letter.partition == partition]
        for attempt in range(SNAPSHOT_ATTEMPTS):
            try:
                verdicts = PartitionVerdicts(PartitionSource(engines, collection, index, partition))
                listed += judge(mine, verdicts.of, verdicts.newest, engines.clock.now_seconds())
                break
            except SnapshotError:  # compacted meanwhile: once more with the newest manifest
                if attempt == SNAPSHOT_ATTEMPTS - 1:
                    raise
    return [one for one in listed if wanted.takes(one)]


def judge(
    summaries: Sequence[LetterSummary],
    verdicts_of: Callable[[int], Mapping[int, Verdict]],
    newest_of: Callable[[Sequence[str]], Sequence[VersionOrder | None]],
    now_seconds: float,
) -> list[ListedLetter]:
    """States of one partition's dead letters, given in the order of their originals."""
    ids = sorted({item_id for summary in summaries for item_id in summary.ids.values() if item_id is not None})
    newest = dict(zip(ids, newest_of(ids), strict=True))
    first = {summary.letter.offset: summary for summary in summaries if summary.origin is None}
    listed = [_judge_one(summary, verdicts_of(summary.letter.offset), newest, first, now_seconds) for summary in summaries]
    last = {
        (one.summary.origin_offset, item): one.summary.letter.offset for one in listed for item, state in one.states.items() if state != "accepted"
    }
    return [_without_replayed(one, last) for one in listed]


def _judge_one(
    summary: LetterSummary,
    verdicts: Mapping[int, Verdict],
    newest: Mapping[str, VersionOrder | None],
    first: Mapping[int, LetterSummary],
    now_seconds: float,
) -> ListedLetter:
    letter = summary.letter
    is_whole = bool(verdicts) and all(verdict.word == "reject" and item in letter.items for item, verdict in verdicts.items())
    numbers = [item for start, end in letter.items.runs for item in range(start, end)]
    if is_whole:
        numbers = sorted({*numbers, *summary.ids})  # a record that was rejected as a whole may hold more than item 0
    states: dict[int, str] = {}
    for item in numbers:
        mine = version_order(letter.offset, item, *((summary.origin.offset, item) if summary.origin is not None else ()))
        verdict = verdicts.get(item, Verdict("reject") if is_whole else None)
        item_id = summary.ids.get(item)
        states[item] = _state(verdict, mine, None if item_id is None else newest.get(item_id))
    oldest = first.get(summary.origin_offset)
    too_old = oldest is None or now_seconds - oldest.letter.written_ms / 1000 > MAX_REPLAY_DAYS * 86400
    return ListedLetter(summary, _worst(states.values()), states, is_whole, too_old)


def _state(verdict: Verdict | None, mine: VersionOrder, newest: VersionOrder | None) -> str:
    if verdict is None:
        return "pending"
    if newest is not None and newest > mine:
        return "replayed" if newest[:2] == mine[:2] else "superseded"
    if verdict.word == "reject":
        return "dead"
    if verdict.word == "row":
        return "partial" if verdict.partial else "accepted"
    return "superseded"


def _without_replayed(listed: ListedLetter, last: Mapping[tuple[int, int], int]) -> ListedLetter:
    """An item that was rejected again under a later offset is dead there, not here."""
    origin, offset = listed.summary.origin_offset, listed.summary.letter.offset
    states = {item: "replayed" if last.get((origin, item), offset) > offset and state == "dead" else state for item, state in listed.states.items()}
    return replace(listed, states=states, state=_worst(states.values()))


def _worst(states: Iterable[str]) -> str:
    return min(states, key=STATES.index, default="pending")
