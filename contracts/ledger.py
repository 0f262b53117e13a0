"""The ledger: what became of every item of every media offset, as runs (docs/formats/ledger.md).

A run says one verdict for the offsets ``[start_offset, next_offset)``, and in each of them for the items
``[start_item, next_item)``. Together a partition's ledgers tile ``[origin_offset, checkpoint.media_offset)``.

Takes: verdicts in (offset, item) order. Gives: runs, and an Arrow file of them. Owns: the verdict words.
Never: forgets an offset: what is not a row, delete, patch or reject is a `gap` or `lost`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from contracts import FORMAT_VERSION
from contracts.errors import CorruptError

VERDICTS = ("row", "delete", "patch", "reject", "gap", "lost", "superseded", "deleted", "expired")
"""What became of an item. `row` runs equal stored rows; compaction turns the runs of rows it drops into the last three."""

_SCHEMA = pa.schema(
    [
        pa.field("start_offset", pa.int64(), nullable=False),
        pa.field("next_offset", pa.int64(), nullable=False),
        pa.field("start_item", pa.int32(), nullable=False),
        pa.field("next_item", pa.int32(), nullable=False),
        pa.field("verdict", pa.utf8(), nullable=False),
        pa.field("reason", pa.utf8()),
        pa.field("partial", pa.bool_(), nullable=False),
    ],
    metadata={"hw_kind": "ledger", "hw_format": str(FORMAT_VERSION)},
)


@dataclass(frozen=True, slots=True)
class LedgerRun:
    """One run of equal verdicts. `partial` marks rows of which a part was rejected, with its reason."""

    start_offset: int
    next_offset: int
    start_item: int
    next_item: int
    verdict: str
    reason: str | None = None
    partial: bool = False

    @property
    def rejects(self) -> bool:
        """Whether items were dead-lettered whole: rejects, and deletes with a reason, by which a rejected update removed the older row."""
        return self.verdict == "reject" or (self.verdict == "delete" and self.reason is not None)

    @property
    def items(self) -> int:
        """Number of items that the run covers."""
        return (self.next_offset - self.start_offset) * (self.next_item - self.start_item)


def _same_kind(a: LedgerRun, b: LedgerRun) -> bool:
    return (a.verdict, a.reason, a.partial) == (b.verdict, b.reason, b.partial)


def merge_runs(runs: Iterable[LedgerRun]) -> list[LedgerRun]:
    """Join neighbouring runs, given in (offset, item) order: along items within one offset, along offsets of equal items."""
    out: list[LedgerRun] = []
    for run in runs:
        last = out[-1] if out else None
        if last is not None and _same_kind(last, run):
            one_offset = run.start_offset == last.start_offset and run.next_offset == last.next_offset == last.start_offset + 1
            if one_offset and run.start_item == last.next_item:
                out[-1] = replace(last, next_item=run.next_item)
                continue
        out.append(run)
    joined: list[LedgerRun] = []
    for run in out:
        last = joined[-1] if joined else None
        same_items = last is not None and (last.start_item, last.next_item) == (run.start_item, run.next_item)
        if last is not None and same_items and _same_kind(last, run) and last.next_offset == run.start_offset:
            joined[-1] = replace(last, next_offset=run.next_offset)
        else:
            joined.append(run)
    return joined


def encode_ledger(runs: Sequence[LedgerRun]) -> bytes:
    """Arrow IPC file (zstd) of n runs, in the given order."""
    columns = [pa.array([getattr(run, target.name) for run in runs], target.type) for target in _SCHEMA]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
    return sink.getvalue()


def decode_ledger(data: bytes | memoryview, where: str) -> list[LedgerRun]:
    """Read runs back; the bytes were checked against the manifest before.

    Raises
    ------
    CorruptError
        Not a ledger of this format, or a run that covers nothing or has an unknown verdict.
    """
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(f"{where}: not a ledger: {error}") from None
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        raise CorruptError(f"{where}: not a ledger of format {FORMAT_VERSION}", code="unknown_format")
    runs = [LedgerRun(**row) for row in table.to_pylist()]
    for run in runs:
        if run.verdict not in VERDICTS or run.next_offset <= run.start_offset or run.next_item < run.start_item:
            raise CorruptError(f"{where}: run {run} is impossible")
    return runs


def untiled(runs: Iterable[LedgerRun], start_offset: int, next_offset: int) -> list[tuple[int, int]]:
    """Half-open intervals of media offsets that no run covers; empty when the ledger tiles the interval."""
    missing: list[tuple[int, int]] = []
    at = start_offset
    for run in sorted(runs, key=lambda r: (r.start_offset, r.next_offset)):
        if at >= next_offset:
            break
        if run.start_offset > at:
            missing.append((at, min(run.start_offset, next_offset)))
        at = max(at, run.next_offset)
    if at < next_offset:
        missing.append((at, next_offset))
    return missing
