"""What grew: one thread per file and process that looks for commits of any process and wakes the readers of the topics they touched.

With a look of its own every reader would ask SQLite hundreds of times a second, and wake at every append to any topic; together they
held up the threads that work (docs/benchmarks.md, W4 embedded).

Takes: a path, a sign of each commit of this process. Gives: a number per topic that changes when the topic does, and the wait for it.
Owns: the thread and its connection, while there is a reader. Never: says what grew; a reader that is woken looks for itself.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from pathlib import Path

_FIRST_LOOK_SECONDS = 0.002
_LAST_LOOK_SECONDS = 0.005
_ERROR_SECONDS = 0.1
# One row for a topic: every row that sqlite3 steps to lets go of the interpreter once more.
_BOUNDS = """
SELECT t.name, t.id || ':' || group_concat(p.start_offset || '-' || p.next_offset)
FROM topics t JOIN partitions p ON p.topic=t.id GROUP BY t.id"""


class TopicWatch:
    """Changes of the topics of one file, as this process sees them. Thread-safe.

    Parameters
    ----------
    path : Path
        The file; it has its tables.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._due = threading.Event()
        self._changed = threading.Condition()
        self._changes: Counter[str] = Counter()
        self._seen: dict[str, str] = {}
        self._readers = 0
        self._thread: threading.Thread | None = None

    def join(self) -> None:
        """Begin to watch, for one more reader."""
        with self._changed:
            self._readers += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sqlite-watch", daemon=True)
                self._thread.start()

    def leave(self, topic: str) -> None:
        """End the watch of one reader, and wake it wherever it waits."""
        with self._changed:
            self._readers -= 1
            self._changes[topic] += 1
            self._changed.notify_all()

    def changes(self, topic: str) -> int:
        """A number that differs after every change of the topic that this process has seen."""
        return self._changes[topic]

    def look(self) -> None:
        """Look now: this process has just committed something."""
        self._due.set()

    def wait(self, topic: str, seen: int, timeout_seconds: float) -> None:
        """Return once `changes` of the topic differs from `seen`, or when time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes[topic] != seen, min(timeout_seconds, threading.TIMEOUT_MAX))

    def _run(self) -> None:
        """Look for commits until there is no reader left."""
        connection: sqlite3.Connection | None = None
        version, pause_seconds = -1, _FIRST_LOOK_SECONDS
        while self._goes_on():
            try:
                if connection is None:
                    connection = sqlite3.connect(self._path, isolation_level=None)
                now = int(connection.execute("PRAGMA data_version").fetchone()[0])
                pause_seconds = min(pause_seconds * 1.5, _LAST_LOOK_SECONDS) if now == version else _FIRST_LOOK_SECONDS
                if now != version:
                    version = now
                    self._compare(dict(connection.execute(_BOUNDS).fetchall()))
            except sqlite3.Error:  # locked, full, gone: the readers look themselves, and say what is wrong
                self._compare({})
                pause_seconds = _ERROR_SECONDS
            self._due.wait(pause_seconds)
            self._due.clear()
        if connection is not None:
            connection.close()

    def _goes_on(self) -> bool:
        with self._changed:
            if self._readers > 0:
                return True
            self._thread, self._seen = None, {}
            return False

    def _compare(self, found: dict[str, str]) -> None:
        with self._changed:
            grown = {topic for topic in found.keys() | self._seen.keys() if found.get(topic) != self._seen.get(topic)}
            self._seen = found
            if grown:
                self._changes.update(grown)
                self._changed.notify_all()
