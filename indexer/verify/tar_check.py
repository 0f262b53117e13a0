"""The archive, judged (pure): tars against their indexes, and the offsets they hold against the ledgers.

Takes: a tar's bytes, index rows, intervals. Gives: findings. Owns: how intervals of media offsets are compared.
Never: parses a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from contracts.archive_manifest import ArchiveManifest, TarEntry
from contracts.archive_record import sample_key
from contracts.archive_tar import IndexRow
from indexer.verify.findings import Finding

Interval = tuple[int, int]
"""Media offsets, half-open."""


def check_archive_tiling(manifest: ArchiveManifest) -> Iterator[Finding]:
    """Media offsets that the archive's manifest says twice, or outside of what it speaks for."""
    spans = sorted(
        [(tar.start_offset, tar.next_offset, tar.key) for tar in manifest.tars] + [(r.start_offset, r.next_offset, "") for r in manifest.lost]
    )
    for before, after in zip(spans, spans[1:], strict=False):
        if after[0] < before[1]:
            what, end = "held by a tar and called lost", min(before[1], after[1])
            yield Finding("archive_offsets_twice", what, object=before[2] or after[2], start_offset=after[0], next_offset=end)
    for start, end, key in spans:
        if start < manifest.origin_offset:
            what = f"the archive begins at {manifest.origin_offset}"
            yield Finding("tar_disagrees", what, object=key or None, start_offset=start, next_offset=end)


def check_tar(tar: TarEntry, rows: Sequence[IndexRow], data: bytes) -> Iterator[Finding]:
    """Where a tar and its index contradict each other.

    Parameters
    ----------
    tar : TarEntry
        What the manifest says.
    rows : sequence of IndexRow
        Its index.
    data : bytes
        The whole tar.
    """
    records = sum(row.start is not None for row in rows)
    if records != tar.records:
        what = f"the index has {records} records, the manifest says {tar.records}"
        yield Finding("tar_disagrees", what, object=tar.key, start_offset=tar.start_offset, next_offset=tar.next_offset)
    last_offset, end = tar.start_offset - 1, 0
    for row in rows:
        problem = None
        if not last_offset < row.offset < tar.next_offset:
            problem = f"offset {row.offset} comes after {last_offset}, in a tar of {tar.start_offset} to {tar.next_offset}"
        elif row.start is not None and (row.start < end or row.start + row.size_bytes > tar.index_start):
            problem = f"the record's bytes {row.start} to {row.start + row.size_bytes} overlap others"
        elif row.start is not None and not data[row.start : row.start + 512].startswith(sample_key(row.offset).encode() + b"."):
            problem = f"another record lies at byte {row.start}"
        elif row.start is not None and hashlib.sha256(data[row.start : row.start + row.size_bytes]).digest() != row.sha256:
            problem = "the record's bytes differ from the sha256 of the index"
        if problem is not None:
            yield Finding("tar_disagrees", problem, object=tar.key, start_offset=row.offset, next_offset=row.offset + 1)
        last_offset, end = max(last_offset, row.offset), end if row.start is None else row.start + row.size_bytes


def damaged_records(rows: Sequence[IndexRow], data: bytes) -> list[int]:
    """Media offsets of the records whose bytes in a damaged tar are not those of its index."""
    return [
        row.offset for row in rows if row.start is not None and hashlib.sha256(data[row.start : row.start + row.size_bytes]).digest() != row.sha256
    ]


def holes(offsets: Sequence[int], start_offset: int, next_offset: int) -> Iterator[Interval]:
    """The intervals of ``[start_offset, next_offset)`` without one of the offsets, which rise."""
    at = start_offset
    for offset in [*offsets, next_offset]:
        if offset > at:
            yield at, offset
        at = max(at, offset + 1)


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """The same offsets as few intervals that rise and do not touch."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        elif end > start:
            out.append((start, end))
    return out


def minus(intervals: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    """What is in `intervals` and not in `others`."""
    out: list[Interval] = []
    gone, at = joined(others), 0
    for start, end in joined(intervals):
        while at < len(gone) and gone[at][1] <= start:
            at += 1
        begin, look = start, at
        while look < len(gone) and gone[look][0] < end:
            if gone[look][0] > begin:
                out.append((begin, gone[look][0]))
            begin = max(begin, gone[look][1])
            look += 1
        if begin < end:
            out.append((begin, end))
    return out


def compare_with_ledger(absent: Iterable[Interval], gaps: Iterable[Interval], unknown: Iterable[Interval], span: Interval) -> Iterator[Finding]:
    """Compare the offsets without a record in the archive with those that the ledger calls gaps.

    Parameters
    ----------
    absent : iterable of (int, int)
        Offsets that the archive speaks for and holds no record of.
    gaps : iterable of (int, int)
        Gaps of the ledger.
    unknown : iterable of (int, int)
        Offsets that either calls lost, or that could not be read.
    span : (int, int)
        Offsets that both speak for.
    """
    outside = [(-(2**63), span[0]), (span[1], 2**63)]
    absent, gaps, left_out = list(absent), list(gaps), [*unknown, *outside]
    for start, end in minus(absent, [*gaps, *left_out]):
        yield Finding("record_not_archived", "the ledger knows items here, the archive has no record", start_offset=start, next_offset=end)
    for start, end in minus(gaps, [*absent, *left_out]):
        yield Finding("gap_holds_record", "the archive has records here, the ledger calls it a gap", start_offset=start, next_offset=end)
