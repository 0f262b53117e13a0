"""What `headwater ingest` shows: a bar while it runs, counts and reasons at the end, the rejects file.

Takes: reports, rejected inputs. Gives: lines on a terminal, JSON, JSONL. Owns: the words.
Never: slows the ingest: the bar is drawn a few times a second.
"""

from __future__ import annotations

import json
import time
from collections import deque
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from contracts.errors import SettingsError
from headwater.console import megabytes, notes, one_line, output, print_json
from ingest.ingest_run import IngestReport, rejected_summary
from ingest.input_item import RejectedInput

_DRAW_SECONDS = 0.1
_RATE_SECONDS = 5.0


class IngestBar(AbstractContextManager["IngestBar"]):
    """Bar of one ingest: share of the sources' bytes, items, rate, bytes, rejects, remaining time.

    Parameters
    ----------
    total_bytes : int
        Size of all sources; 0 where it is not known: then the bar only says that something happens.
    """

    def __init__(self, total_bytes: int) -> None:
        console = notes()
        self._bar = Progress(
            TextColumn("ingesting"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("ingesting", total=total_bytes or None, note="")
        self._drawn_at = 0.0
        self._recent: deque[tuple[float, int]] = deque()

    @property
    def is_shown(self) -> bool:
        """Somebody sees it."""
        return not self._bar.disable

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, report: IngestReport) -> None:
        """Bring the bar up to the report, at most a few times a second."""
        now = time.monotonic()
        if not self.is_shown or now - self._drawn_at < _DRAW_SECONDS:
            return
        self._drawn_at = now
        self._bar.update(self._task, completed=report.source_bytes, note=self._note(report, now))

    def _note(self, report: IngestReport, now: float) -> str:
        self._recent.append((now, report.items))
        while now - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        seconds, items = now - self._recent[0][0], report.items - self._recent[0][1]
        rate = f"{items / seconds:,.0f}/s" if seconds > 0 else "-"
        rejected = f", {report.rejected.total():,} rejected" if report.rejected else ""
        return f"{report.items:,} items, {rate}, {megabytes(report.size_bytes)}{rejected}"


class RejectsFile(AbstractContextManager["RejectsFile"]):
    """Rejected inputs as JSONL, each on disk as soon as it is known; without a path, nothing.

    Parameters
    ----------
    path : Path, optional
        The file.
    goes_on : bool
        Keep what is there: an interrupted ingest wrote it, and does not meet those inputs again.

    Raises
    ------
    SettingsError
        The file cannot be written.
    """

    def __init__(self, path: Path | None, *, goes_on: bool) -> None:
        self._file: IO[str] | None = None
        try:
            self._file = None if path is None else path.open("a" if goes_on else "w", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{path}: cannot be written: {error.strerror}", hint="name another file with --rejects") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rejected: RejectedInput) -> None:
        """Write one."""
        if self._file is not None:
            self._file.write(json.dumps(_reject_json(rejected), ensure_ascii=False) + "\n")
            self._file.flush()


def show_report(report: IngestReport, collection: str, as_json: bool) -> None:
    """The end of an ingest: counts on stdout, what was left out on stderr."""
    if as_json:
        print_json(_as_json(report, collection))
        return
    parts = [f"{report.items:,} items ({report.records:,} records, {megabytes(report.size_bytes)}) on the media topic of {collection}"]
    if report.earlier.items:
        parts.append(f"{report.earlier.items:,} by the run before that was interrupted")
    if report.deleted:
        parts.append(f"{report.deleted:,} deleted")
    if report.rejected or report.earlier.rejected:
        earlier = sum(report.earlier.rejected.values())
        parts.append(f"{report.rejected.total() + earlier:,} rejected")
    if report.not_acknowledged:
        parts.append(f"{report.not_acknowledged:,} not acknowledged")
    if report.other_files:
        parts.append(f"{report.other_files:,} other files were no pictures")
    output().print("; ".join(parts), soft_wrap=True, markup=False)
    for word, lines in (("warning", _few(report.unused_captions)), ("rejected", rejected_summary(report))):
        for line in lines:
            notes().print(f"{word} {one_line(line)}", soft_wrap=True, markup=False)


def _few(lines: list[str], most: int = 10) -> list[str]:
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])


def _reject_json(rejected: RejectedInput) -> dict[str, str]:
    """A file's name may hold bytes that are no UTF-8: they are shown as escapes."""
    name, message = (text.encode("utf-8", "backslashreplace").decode() for text in (rejected.name, rejected.message))
    return {"name": name, "reason": rejected.reason, "message": message}


def _as_json(report: IngestReport, collection: str) -> dict[str, Any]:
    return {
        "collection": collection,
        "items": report.items,
        "records": report.records,
        "size_bytes": report.size_bytes,
        "deleted": report.deleted,
        "not_acknowledged": report.not_acknowledged,
        "rejected": dict(report.rejected),
        "first_rejected": [_reject_json(one) for one in report.first_rejected],
        "earlier": {"items": report.earlier.items, "size_bytes": report.earlier.size_bytes, "rejected": report.earlier.rejected},
        "unused_captions": report.unused_captions,
        "other_files": report.other_files,
        "next_offsets": report.next_offsets,
    }
