"""One ingest: what a source found, through a producer, onto the media topic.

Takes: found files, a producer. Gives: a report, and progress while it runs. Owns: counting.
Never: stops for one bad file, or forgets one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from contracts.errors import RecordError
from contracts.media_record import TEXT_TYPE
from ingest.producer import MediaProducer
from ingest.sources import FoundFiles, SkippedFile, SourceFile, read_files, typed_attributes


@dataclass(slots=True)
class IngestReport:
    """How far an ingest is, or how it ended.

    `records` and `size_bytes` were handed to the log; `skipped` files were left out; `unused_rows` are captions without their file, a warning only;
    `next_offsets`, set at the end, names what a reader must have seen to see them all.
    """

    records: int = 0
    size_bytes: int = 0
    skipped: list[SkippedFile] = field(default_factory=list)
    unused_rows: list[SkippedFile] = field(default_factory=list)
    other_files: int = 0
    next_offsets: dict[int, int] = field(default_factory=dict)


def ingest_files(found: FoundFiles, producer: MediaProducer, on_progress: Callable[[IngestReport], None] | None = None) -> IngestReport:
    """Send every file that was found and wait until all are stored.

    Parameters
    ----------
    found : FoundFiles
        Out of `ingest.sources.find_files`.
    producer : MediaProducer
        Of the collection that takes them; it is flushed, and stays open.
    on_progress : callable, optional
        Called after each file with the report so far.

    Raises
    ------
    UnavailableError
        The log did not store everything. Running the same ingest again is safe.
    """
    report = IngestReport(skipped=list(found.skipped), unused_rows=list(found.unused_rows), other_files=found.other_files)
    for file, data in read_files(found.files):
        _send_file(file, data, producer, report)
        if on_progress is not None:
            on_progress(report)
    producer.flush()
    report.next_offsets = producer.next_offsets
    return report


def _send_file(file: SourceFile, data: bytes | SkippedFile, producer: MediaProducer, report: IngestReport) -> None:
    if isinstance(data, SkippedFile):
        report.skipped.append(data)
        return
    try:
        attributes = None if file.attributes is None else typed_attributes(file.attributes, producer.collection.attributes)
        if file.content_type == TEXT_TYPE:
            producer.send_text(file.item_id, data.decode("utf-8"), file.caption, attributes)
        else:
            producer.send_picture(file.item_id, data, file.content_type, file.caption, attributes)
    except UnicodeDecodeError:
        report.skipped.append(SkippedFile(str(file.path), "not UTF-8 text"))
    except RecordError as error:
        report.skipped.append(SkippedFile(str(file.path), error.message))
    else:
        report.records += 1
        report.size_bytes += len(data)


def skipped_summary(skipped: Sequence[SkippedFile], most: int = 10) -> list[str]:
    """Lines that tell what was not ingested, the first few by name."""
    lines = [f"{file.name}: {file.reason}" for file in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"and {len(skipped) - most} more")
    return lines
