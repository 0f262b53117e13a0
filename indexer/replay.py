"""Replays dead letters: their originals are produced to the media topic again, with where they come from.

Takes: listed dead letters. Gives: a plan, then records in the media topic. Owns: what may be replayed.
Never: decides who wins: the versions' order does.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import HeadwaterError, SettingsError, UnavailableError
from contracts.log import LogProducer, RecordPosition
from contracts.media_origin import Items, MediaOrigin, replay_headers
from indexer.dead_letter_states import MAX_REPLAY_DAYS, ListedLetter
from indexer.dead_letter_topic import read_original

IN_FLIGHT_BYTES = 64 * 1024 * 1024
IN_FLIGHT_RECORDS = 500
ACKNOWLEDGE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a replay would do: records to produce, and how many are left out, by why."""

    letters: tuple[ListedLetter, ...]
    left_out: Counter[str]


@dataclass
class ReplayReport:
    """What a replay did: positions by place of the original, and why the others were not produced."""

    replayed: dict[tuple[int, int], RecordPosition] = field(default_factory=dict)
    failed: dict[tuple[int, int], str] = field(default_factory=dict)


def plan_replay(listed: Sequence[ListedLetter], are_named: bool = False) -> ReplayPlan:
    """Choose what to replay, in the order of the originals.

    Parameters
    ----------
    listed : sequence of ListedLetter
        What the operator's filter takes.
    are_named : bool
        Whether each was named by its place: then those that were superseded or replayed come too (they lose, or win, by the order of versions).

    Raises
    ------
    SettingsError
        ``dead_letter_too_old``: what was named, or all that is still dead, is older than 30 days.
    """
    wanted = ("dead", "partial", "superseded", "replayed") if are_named else ("dead", "partial")
    left_out = Counter(one.state for one in listed if one.state not in wanted)
    chosen = [one for one in listed if one.state in wanted]
    old = [one for one in chosen if one.is_too_old]
    if old and (are_named or len(old) == len(chosen)):
        partition, offset = old[0].place
        raise SettingsError(
            f"dead letter {partition}/{offset} is older than {MAX_REPLAY_DAYS} days (or the first of it is gone): deletes are remembered 31 days, "
            "an older replay could bring back what was deleted since",
            hint="send the record again from its source, or write it to a file with `headwater dead-letter show --out`",
            code="dead_letter_too_old",
        )
    if old:
        left_out["too old"] = len(old)
    return ReplayPlan(tuple(one for one in chosen if not one.is_too_old), left_out)


def replay(engines: Engines, collection: CollectionRecord, letters: Sequence[ListedLetter], progress: Callable[[int], None]) -> ReplayReport:
    """Produce the originals again; a record that cannot be produced does not stop the others.

    Parameters
    ----------
    engines, collection
        Where to.
    letters : sequence of ListedLetter
        Of a plan.
    progress : callable
        Told how many are done, after each.
    """
    report = ReplayReport()
    producer = engines.log.producer(linger_seconds=0.005)
    waiting: deque[tuple[tuple[int, int], int, Future[RecordPosition]]] = deque()
    try:
        for letter in letters:
            while waiting and (len(waiting) >= IN_FLIGHT_RECORDS or sum(size for _, size, _ in waiting) > IN_FLIGHT_BYTES):
                _settle(*waiting.popleft(), report)
            try:
                waiting.append((letter.place, letter.summary.letter.size_bytes, _send(engines, collection, producer, letter)))
            except SettingsError as error:  # of this record alone: its bytes are gone, or it cannot be sent
                report.failed[letter.place] = error.message
            progress(len(report.replayed) + len(report.failed))
        while waiting:
            _settle(*waiting.popleft(), report)
            progress(len(report.replayed) + len(report.failed))
    finally:
        producer.close()
    return report


def _send(engines: Engines, collection: CollectionRecord, producer: LogProducer, listed: ListedLetter) -> Future[RecordPosition]:
    summary = listed.summary
    original = read_original(engines, collection, summary.letter)
    if original is None:
        raise SettingsError(
            "its bytes are not in the dead-letter topic, and cannot be had from the media topic (any more)", hint="send it again from its source"
        )
    items = None if listed.is_whole else Items.of(listed.dead_items or listed.states)
    timestamp_ms = summary.letter.timestamp_ms if summary.origin is None else summary.origin.timestamp_ms
    headers = replay_headers(original, MediaOrigin(summary.origin_offset, items, timestamp_ms))
    return producer.send(collection.source_topic, partition=original.partition, key=original.key, value=original.value, headers=headers)


def _settle(place: tuple[int, int], size_bytes: int, future: Future[RecordPosition], report: ReplayReport) -> None:
    try:
        report.replayed[place] = future.result(ACKNOWLEDGE_SECONDS)
    except (UnavailableError, TimeoutError) as error:
        report.failed[place] = f"perhaps not stored: {error}; replay it again, twice does no harm"
    except HeadwaterError as error:
        report.failed[place] = error.message
