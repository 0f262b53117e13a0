"""One ingest: what sources hold, through a producer, onto the media topic.

Takes: opened sources, a producer, a folder for the resume state. Gives: a report, and progress while it runs. Owns: counting, and the order of
sends. Never: stops for a bad input, forgets one, or calls an entry done that the log has not acknowledged.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from contracts.errors import HeadwaterError, RecordError, SettingsError, UnavailableError
from contracts.settings import MEBIBYTE
from ingest.acknowledged import Acknowledgements, UnitProgress
from ingest.input_item import InputItem, InputSource, InputUnit, RejectedInput
from ingest.producer import DELIVERY_SECONDS, MediaProducer
from ingest.records import plain_record
from ingest.resume import COMPLETE, Journal, SourceTotals
from ingest.sources import OpenedSources

MAX_IN_FLIGHT_RECORDS = 4096
JOURNAL_SECONDS = 0.25
JOURNAL_RECORDS = 1000
"""After a kill, at most the records in flight and those acknowledged since the journal was last written are sent again."""

MAX_OPEN_JOURNALS = 64
SHOWN_PER_REASON = 5
_ROWS_BYTES = MEBIBYTE  # of rows with own vectors that share a record
_CALLBACK_SECONDS = 5.0
_INTERRUPTED_SECONDS = 5.0


@dataclass(slots=True)
class IngestReport:
    """How far an ingest is, or how it ended.

    `items` and `size_bytes` are what the log acknowledged in this run, in `records`, which count the `deleted` too; `earlier` is what
    interrupted runs of the same ingest did before. `rejected` counts inputs that were left out by reason, `first_rejected` names the first few
    of each. `unused_captions` are captions without their file, a warning only. `source_bytes` of the sources have been passed.
    `next_offsets`, set at the end, names what a reader must have seen to see everything.
    """

    items: int = 0
    records: int = 0
    size_bytes: int = 0
    deleted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejected: list[RejectedInput] = field(default_factory=list)
    not_acknowledged: int = 0
    earlier: SourceTotals = field(default_factory=SourceTotals)
    other_files: int = 0
    unused_captions: list[str] = field(default_factory=list)
    source_bytes: int = 0
    next_offsets: dict[int, int] = field(default_factory=dict)


class SourceState:
    """A source with its journal (None where it cannot be resumed) and its totals."""

    def __init__(self, source: InputSource, journal: Journal | None) -> None:
        self.source, self.journal = source, journal
        self.totals = SourceTotals() if journal is None else journal.totals

    def done(self, unit: InputUnit) -> int:
        """Entries of a unit that need not be sent again."""
        return 0 if self.journal is None else self.journal.done(unit.name, unit.stamp)


class IngestRun:
    """Sends units. Used by one thread.

    Parameters
    ----------
    producer : MediaProducer
        Of the collection that takes them; stays open.
    on_progress : callable, optional
        Called after each entry with the report so far.
    on_reject : callable, optional
        Called with each rejected input.
    stop : Event, optional
        Where it is set, a unit is left after the entry that is being sent.
    """

    def __init__(
        self,
        producer: MediaProducer,
        on_progress: Callable[[IngestReport], None] | None = None,
        on_reject: Callable[[RejectedInput], None] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.report = IngestReport()
        self._producer = producer
        self._on_progress, self._on_reject = on_progress, on_reject
        self._stop = stop or threading.Event()
        self._sent = Acknowledgements(MAX_IN_FLIGHT_RECORDS)
        self._states: list[SourceState] = []
        self._closed: list[Journal] = []
        self._rows: list[tuple[int, InputItem]] = []
        self._rows_bytes = 0
        self._passed_bytes = 0
        self._written_at, self._written_records = time.monotonic(), 0

    def open(self, source: InputSource, folder: Path | None, *, restart: bool = False, remembers: bool = False) -> SourceState:
        """Open the journal of a source, below `folder`; without a folder nothing is resumed.

        Raises
        ------
        SettingsError
            Another process ingests it, or the journal cannot be written.
        """
        journal = None
        if folder is not None and source.identity:
            journal = Journal.of(folder, source.identity, self._producer.collection, restart=restart, remembers=remembers)
        state = SourceState(source, journal)
        self._states.append(state)
        earlier = self.report.earlier
        earlier.items += state.totals.items
        earlier.size_bytes += state.totals.size_bytes
        for reason, count in state.totals.rejected.items():
            earlier.rejected[reason] = earlier.rejected.get(reason, 0) + count
        return state

    def release(self) -> None:
        """Where many journals are open, wait until their sources are acknowledged and close them: a process has only so many files."""
        if len(self._states) >= MAX_OPEN_JOURNALS:
            self.finish()
            self.close(is_finished=False)

    def send_unit(self, unit: InputUnit, state: SourceState) -> None:
        """Send what of a unit is not done yet.

        Raises
        ------
        UnavailableError
            The log does not take records; what it acknowledged is in the journal.
        """
        skip = state.done(unit)
        if skip == COMPLETE:
            self._passed_bytes += unit.size_bytes
            self.report.source_bytes = self._passed_bytes
            return
        progress = UnitProgress(state.totals, state.journal, unit.name, unit.stamp, skip)
        entry = skip
        for found in unit.read(skip):
            if isinstance(found, RejectedInput):
                self.reject(found)
                self._sent.reject(progress, entry, found.reason)
            else:
                self._send(found, entry, progress, unit.batch_rows)
            entry += 1
            self.report.source_bytes = self._passed_bytes + unit.read_bytes()
            self._after_entry()
            if self._stop.is_set():
                self._send_rows(progress)
                return
        self._send_rows(progress)
        self._sent.end_of(progress, entry)
        self._passed_bytes += unit.size_bytes
        self.report.source_bytes = self._passed_bytes

    def delete(self, name: str, item_id: str, state: SourceState) -> None:
        """Delete the item of a unit that is gone; the journal forgets the unit once the delete is acknowledged."""
        progress = UnitProgress(SourceTotals(), state.journal, name, "", 0)
        progress.is_delete, progress.total = True, 1
        self._wait_for_room()
        self._sent.follow([self._producer.delete(item_id)], progress, [0], 0)
        self.report.deleted += 1
        self._after_entry()

    def reject(self, rejected: RejectedInput) -> None:
        """Count an input that is not sent."""
        self.report.rejected[rejected.reason] += 1
        if self.report.rejected[rejected.reason] <= SHOWN_PER_REASON:
            self.report.first_rejected.append(rejected)
        if self._on_reject is not None:
            self._on_reject(rejected)

    def _send(self, item: InputItem, entry: int, progress: UnitProgress, batch_rows: int) -> None:
        if item.vectors is not None:
            self._add_row(item, entry, progress, batch_rows)
            return
        self._send_rows(progress)  # an id's records keep their order
        self._wait_for_room()
        try:
            record = plain_record(item.item_id, item.data, item.content_type, item.annotations)
            sent = self._producer.send(record, item.item_id)
        except RecordError as error:
            self._refused(item, entry, progress, error)
        except UnavailableError as error:
            raise self._not_stored(error, unsent=1) from None
        else:
            self._sent.follow([sent], progress, [entry], len(item.data))

    def _refused(self, item: InputItem, entry: int, progress: UnitProgress, error: RecordError) -> None:
        self.reject(RejectedInput(item.name, error.reason, error.message))
        self._sent.reject(progress, entry, error.reason)

    def _add_row(self, item: InputItem, entry: int, progress: UnitProgress, batch_rows: int) -> None:
        if self._rows and (self._rows[0][1].vectors or {}).keys() != (item.vectors or {}).keys():
            self._send_rows(progress)
        self._rows.append((entry, item))
        self._rows_bytes += _row_bytes(item)
        if len(self._rows) >= batch_rows or self._rows_bytes >= _ROWS_BYTES:
            self._send_rows(progress)

    def _send_rows(self, progress: UnitProgress) -> None:
        """Send the rows with own vectors that wait; where they are too large together, one by one."""
        rows, size_bytes = self._rows, self._rows_bytes
        self._rows, self._rows_bytes = [], 0
        if not rows:
            return
        self._wait_for_room()
        items = [item for _, item in rows]
        try:
            futures = self._producer.send_vectors(
                [item.item_id for item in items],
                {name: np.stack([item.vectors[name] for item in items if item.vectors]) for name in items[0].vectors or {}},
                texts=[item.annotations.caption for item in items],
                attributes=[item.annotations.attributes for item in items],
                acls=[item.annotations.acl for item in items],
                times=[_moment(item.annotations.time) for item in items],
            )
        except RecordError as error:
            if len(rows) == 1:
                self._refused(items[0], rows[0][0], progress, error)
                return
            for row in rows:
                self._rows, self._rows_bytes = [row], _row_bytes(row[1])
                self._send_rows(progress)
            return
        except UnavailableError as error:
            raise self._not_stored(error, unsent=1) from None
        self._sent.follow(futures, progress, [entry for entry, _ in rows], size_bytes)

    def _wait_for_room(self) -> None:
        has_room = self._sent.wait_for_room(DELIVERY_SECONDS)
        if self._sent.failed or not has_room:
            raise self._not_stored()

    def _after_entry(self) -> None:
        self.count()
        now, acknowledged = time.monotonic(), self._sent.acknowledged
        if now - self._written_at >= JOURNAL_SECONDS or acknowledged - self._written_records >= JOURNAL_RECORDS:
            self.write_journals()
        if self._on_progress is not None:
            self._on_progress(self.report)

    def count(self) -> None:
        """Bring the report up to what is acknowledged now."""
        self.report.records = self._sent.acknowledged
        self.report.items, self.report.size_bytes = self._sent.items, self._sent.size_bytes
        self.report.not_acknowledged = self._sent.failed + self._sent.in_flight
        self.report.next_offsets = self._producer.next_offsets

    def write_journals(self) -> None:
        """Write down what is acknowledged."""
        self._written_at, self._written_records = time.monotonic(), self._sent.acknowledged
        self._sent.write_journals()
        for state in self._states:
            if state.journal is not None:
                state.journal.write()

    def finish(self) -> None:
        """Wait until everything is acknowledged.

        Raises
        ------
        UnavailableError
            Something is not; the message counts it. Running the same ingest again goes on where it was.
        SettingsError
            The log refused records for good.
        """
        failure: HeadwaterError | None = None
        try:
            self._producer.flush()
        except HeadwaterError as error:
            failure = error
        self._sent.wait_until_idle(_CALLBACK_SECONDS)
        self.count()
        self.write_journals()
        if self._sent.failed or self._sent.in_flight or failure is not None:
            raise self._not_stored(failure)

    def _not_stored(self, failure: BaseException | None = None, unsent: int = 0) -> HeadwaterError:
        self.count()
        self.report.not_acknowledged += unsent
        first = self._sent.first_error or failure
        why = "" if first is None else f"; the first: {getattr(first, 'message', first)}"
        kind = SettingsError if isinstance(first, SettingsError) else UnavailableError
        return kind(
            f"{self.report.not_acknowledged} records were not acknowledged by topic {self._producer.collection.source_topic}{why}",
            hint=getattr(first, "hint", "") or "check the log, then run the same command again: it goes on where it was",
            code="not_stored",
        )

    def interrupted(self) -> None:
        """Give what is in flight a moment, then write down what is acknowledged."""
        if not self._sent.failed:
            with suppress(HeadwaterError):
                self._producer.flush(_INTERRUPTED_SECONDS)
            self._sent.wait_until_idle(_CALLBACK_SECONDS if self._producer.in_flight_bytes == 0 else 0.0)
        self.count()
        with suppress(SettingsError):
            self.write_journals()

    def begin_again(self) -> None:
        """After an outage: a new producer (UnavailableError where there is none yet), nothing in flight. What is not done can be sent again."""
        self._producer.renew()
        self.write_journals()
        self._sent = self._sent.renewed()
        self._rows, self._rows_bytes = [], 0
        self.count()

    def close(self, *, is_finished: bool) -> None:
        """Let go of the journals; those of a finished ingest are removed."""
        for state in self._states:
            if state.journal is not None:
                state.journal.close()
                self._closed.append(state.journal)
        self._states.clear()
        if is_finished:
            for journal in self._closed:
                journal.remove()


def ingest_sources(run: IngestRun, opened: OpenedSources, folder: Path | None = None, *, restart: bool = False) -> IngestReport:
    """Send everything that the sources hold and wait until all of it is acknowledged.

    Parameters
    ----------
    run : IngestRun
        Fresh; its report tells how far it came, also after an error.
    opened : OpenedSources
        Out of `ingest.sources.open_sources`.
    folder : Path, optional
        Where the resume state lies; without it nothing is resumed.
    restart : bool
        Send everything, whatever an interrupted ingest has done.

    Raises
    ------
    UnavailableError
        The log did not acknowledge everything.
    SettingsError
        Another process ingests one of the sources, or the resume state cannot be written.
    """
    is_finished = False
    try:
        for source in opened.sources:
            state = run.open(source, folder, restart=restart)
            for unit in source.units():
                if isinstance(unit, RejectedInput):
                    run.reject(unit)
                else:
                    run.send_unit(unit, state)
            run.release()
        run.report.other_files, run.report.unused_captions = opened.other_files, opened.unused_captions()
        run.finish()
        is_finished = True
    finally:
        if not is_finished:
            run.interrupted()
        run.close(is_finished=is_finished)
    return run.report


def _row_bytes(item: InputItem) -> int:
    vectors = sum(vector.nbytes for vector in (item.vectors or {}).values())
    text = len(item.annotations.caption or "") + len(str(item.annotations.attributes or "")) + len(str(item.annotations.acl or ""))
    return vectors + text + len(item.item_id)


def _moment(value: datetime | str | None) -> datetime | None:
    return datetime.fromisoformat(value.replace("z", "Z").replace("t", "T")) if isinstance(value, str) else value


def rejected_summary(report: IngestReport) -> list[str]:
    """Lines that tell what was not ingested: by reason, the first few by name."""
    lines = []
    for reason, count in report.rejected.most_common():
        named = [rejected for rejected in report.first_rejected if rejected.reason == reason]
        lines += [f"{reason}: {rejected.name}: {rejected.message}" for rejected in named]
        if count > len(named):
            lines.append(f"{reason}: and {count - len(named)} more")
    return lines
