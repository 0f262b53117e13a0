"""Reads a collection's dead-letter topic: one summary per rejected record, without its bytes.

Takes: the dead-letter topic. Gives: `LetterSummary`s in the order of their originals. Owns: copies (a crash leaves two), and the ids.
Never: keeps media bytes in memory, or says whether a dead letter is still dead (`indexer.dead_letter_states`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import RecordError
from contracts.log import LogRecord
from contracts.media_item import RecordLimits
from contracts.media_origin import MediaOrigin, SupersededItem, read_items, read_origin
from indexer.dead_letter import DeadLetter, read_dead_letter
from indexer.item_verdicts import read_to_end

_NO_LIMITS = RecordLimits(max_text_bytes=2**31, max_rows=2**31)
"""Ids are read by today's rules without limits: what was too large has an id all the same."""


@dataclass(frozen=True, slots=True)
class LetterSummary:
    """A dead letter without its bytes (`letter.original` is None).

    `value_sha256` is the hash of the original's value, None where that is null or gone. `ids` are the ids by item, of every item that
    today's rules find in the record, None where they find none. `origin` is set where the original was itself a replay. `copies` counts how often the
    record lies in the topic.
    """

    letter: DeadLetter
    value_sha256: str | None
    ids: Mapping[int, str | None]
    origin: MediaOrigin | None
    copies: int = 1

    @property
    def origin_offset(self) -> int:
        """Offset of the first original."""
        return self.letter.offset if self.origin is None else self.origin.offset


def summarise(letter: DeadLetter, original: LogRecord | None, collection: CollectionRecord) -> LetterSummary:
    """Summary of a dead letter; its original is read by today's rules."""
    origin: MediaOrigin | None = None
    ids: dict[int, str | None] = {}
    sha256 = None
    if original is not None:
        try:
            origin = read_origin(original)
        except RecordError:  # it was rejected as bad_origin: it is its own origin
            original = replace(original, headers=tuple(header for header in original.headers if header[0] != "hw_origin"))
        items = read_items([original], collection, _NO_LIMITS)[0]
        ids = {item.item: item.id for item in items if not isinstance(item, SupersededItem)}
        sha256 = None if original.value is None else hashlib.sha256(original.value).hexdigest()
    return LetterSummary(replace(letter, original=None), sha256, ids, origin)


def read_summaries(
    engines: Engines,
    collection: CollectionRecord,
    index: IndexRecord,
    partitions: Sequence[int],
    progress: Callable[[int], None] = lambda records: None,
) -> list[LetterSummary]:
    """Every dead letter of an index, by partition and offset of the original; of copies the first.

    Parameters
    ----------
    engines, collection, index
        Whose dead letters.
    partitions : sequence of int
        Which partitions to read.
    progress : callable
        Told how many records were read, after each.
    """
    found: dict[tuple[int, int], LetterSummary] = {}
    read = 0

    def take(record: LogRecord) -> None:
        nonlocal read
        read += 1
        progress(read)
        letter = read_dead_letter(record)
        if letter is None or (letter.index, letter.incarnation) != (index.name, collection.incarnation):
            return
        known = found.get(letter.place)
        if known is not None:
            found[letter.place] = replace(known, copies=known.copies + 1)
            return
        original = letter.original or engines.log.read_at(collection.source_topic, *letter.place)
        found[letter.place] = summarise(letter, original, collection)

    topic = collection.dead_letter_topic
    bounds = engines.log.bounds(topic)
    read_to_end(engines.log, topic, {partition: bounds[partition].start_offset for partition in partitions}, take)
    return [found[place] for place in sorted(found)]


def read_original(engines: Engines, collection: CollectionRecord, letter: DeadLetter) -> LogRecord | None:
    """The original with its bytes: from the dead letter, else from the media topic; None where they cannot be had from either (any more)."""
    stored = engines.log.read_at(collection.dead_letter_topic, letter.partition, letter.stored_offset)
    found = None if stored is None else read_dead_letter(stored)
    if found is not None and found.place == letter.place and found.original is not None:
        return found.original
    original = engines.log.read_at(collection.source_topic, letter.partition, letter.offset)
    return None if original is None or original.unreadable is not None else original
