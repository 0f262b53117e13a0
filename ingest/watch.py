"""Watching: what appears, changes or disappears in the sources is sent a moment later, until it is told to stop.

By looking again and again, which works on every file system, also on network shares, where notices of changes do not arrive. A file is sent
once it has not changed for the settle time, so that one which is still being written is not sent half.

Takes: a run, opened sources. Gives: sends and deletes. Owns: when a file is settled, and when it counts as removed.
Never: deletes what it cannot see because a folder is away or cannot be read, or ends because the log or the store does not answer.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import UnavailableError
from ingest.folder_source import FolderSource
from ingest.ingest_run import IngestReport, IngestRun, SourceState
from ingest.input_item import InputUnit, RejectedInput
from ingest.resume import COMPLETE
from ingest.sources import OpenedSources

logger = logging.getLogger(__name__)
_REST = 4.0
"""A look that takes long is followed by a pause of this many times as long: looking never keeps a disk busy."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How to watch: look every `interval_seconds`, take a file as whole after `settle_seconds` without a change."""

    interval_seconds: float = 1.0
    settle_seconds: float = 2.0
    delete_missing: bool = False


class Watch:
    """Watches the sources of one ingest. Used by one thread.

    Parameters
    ----------
    run : IngestRun
        Fresh, with a stop event.
    opened : OpenedSources
        What to watch.
    options : WatchOptions
        How.
    folder : Path
        Where the state lies: what was sent is not sent again, also by the next watch.
    restart : bool
        Send everything once more.
    """

    def __init__(self, run: IngestRun, opened: OpenedSources, options: WatchOptions, folder: Path, *, restart: bool = False) -> None:
        self._run, self._options = run, options
        self._changing: dict[tuple[int, str], tuple[str, float]] = {}
        self._missing: dict[tuple[int, str], float] = {}
        self._told: set[RejectedInput] = set()
        self._states = [run.open(source, folder, restart=restart, remembers=True) for source in opened.sources]
        for source in opened.folders:
            source.remember_types()

    def follow(self, stop: threading.Event) -> IngestReport:
        """Look, send, wait, until `stop` is set.

        Raises
        ------
        UnavailableError
            It was stopped while the log or the store was away: not everything is acknowledged, and the next watch sends it.
        """
        failure: UnavailableError | None = None
        try:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    if failure is not None:
                        self._run.begin_again()
                        failure = None
                    self.look(stop)
                    pause_seconds = _REST * (time.monotonic() - began)
                except UnavailableError as error:
                    logger.warning("not everything was stored, trying again: %s", error)
                    failure, pause_seconds = error, 0.0
                stop.wait(max(self._options.interval_seconds, pause_seconds))
        finally:
            self._run.interrupted()
            self._run.close(is_finished=False)
        if failure is not None:
            raise failure
        return self._run.report

    def look(self, stop: threading.Event) -> None:
        """Send what is new or changed and settled, delete what is gone, and wait until the log has it."""
        for number, state in enumerate(self._states):
            if isinstance(state.source, FolderSource):
                state.source.reload_captions(self._is_old)
            seen: set[str] = set()
            for unit in state.source.units():
                if stop.is_set():
                    return
                if isinstance(unit, RejectedInput):
                    self._tell(unit)
                    continue
                seen.add(unit.name)
                if state.done(unit) != COMPLETE and self._is_settled((number, unit.name), unit):
                    self._run.send_unit(unit, state)
            if self._options.delete_missing and isinstance(state.source, FolderSource):
                self._delete_missing(number, state, seen, state.source)
        self._run.finish()

    def _is_old(self, changed_at: float) -> bool:
        return time.time() - changed_at >= self._options.settle_seconds

    def _is_settled(self, key: tuple[int, str], unit: InputUnit) -> bool:
        """Last written to long enough ago, by the file's time or, where clocks differ, by what was seen of it."""
        first = self._changing.get(key)
        if first is None or first[0] != unit.stamp:
            first = self._changing[key] = (unit.stamp, time.monotonic())
        if not self._is_old(unit.changed_at) and time.monotonic() - first[1] < self._options.settle_seconds:
            return False
        del self._changing[key]
        return True

    def _tell(self, rejected: RejectedInput) -> None:
        """Count once what cannot be looked at, however often that is tried."""
        if rejected not in self._told:
            self._told.add(rejected)
            self._run.reject(rejected)

    def _delete_missing(self, number: int, state: SourceState, seen: set[str], source: FolderSource) -> None:
        """Delete what was sent and is gone for the settle time. A folder that is unreadable, or empty as one that is not mounted, deletes nothing."""
        if source.broken or not seen or state.journal is None:
            return
        now = time.monotonic()
        gone = {name for name in state.journal.names() if name not in seen}
        self._missing = {key: since for key, since in self._missing.items() if key[0] != number or key[1] in gone}
        for name in gone:
            if now - self._missing.setdefault((number, name), now) >= self._options.settle_seconds:
                self._run.delete(name, name, state)
