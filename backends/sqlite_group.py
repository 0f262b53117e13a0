"""Consumer groups of the SQLite log: members with heartbeats in a table, shares computed by every member alike.

Takes: a group and a topic. Gives: the living members, advisory offsets. Owns: the heartbeat.
Never: is the reason that something is correct; positions come from chains (ADR 0001).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Sequence

from backends.log_rules import new_identity
from backends.sqlite_file import SharedFile, connect, mapped, transaction
from contracts.log import CommittedOffset

logger = logging.getLogger(__name__)


class SqliteMembership:
    """One member of a group; a thread of its own keeps it alive while the caller is busy with what it polled.

    Parameters
    ----------
    session_seconds : float
        A member not heard of for this long is out; its partitions go to the others.

    Notes
    -----
    Heartbeats hold `time.monotonic`, which on one machine is the same clock in every process and does not jump. A
    heartbeat from the future was written before a reboot and counts as dead.
    """

    def __init__(self, shared: SharedFile, group: str, topic: str, *, session_seconds: float, lock_seconds: float) -> None:
        self.member = new_identity()
        self._shared = shared
        self._group = (group, topic)
        self._session_seconds = session_seconds
        self._lock = threading.Lock()
        self._left = threading.Event()
        with mapped(shared.path):
            self._connection = connect(shared.path, lock_seconds=lock_seconds, durable=False)
            self._beat()
        self._thread = threading.Thread(target=self._run, name="sqlite-heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._left.wait(self._session_seconds / 3):
            try:
                self._beat()
            except sqlite3.Error as error:  # a missed beat costs at most the membership; the next may succeed
                logger.warning("heartbeat failed: %s", error)

    def _beat(self) -> None:
        now = time.monotonic()
        with self._lock:
            if self._left.is_set():
                return
            with transaction(self._connection, self._shared):
                self._connection.execute(
                    "DELETE FROM members WHERE grp=? AND topic=? AND (seen_seconds<? OR seen_seconds>?)",
                    (*self._group, now - self._session_seconds, now + self._session_seconds),
                )
                self._connection.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?)", (*self._group, self.member, now))

    def members(self) -> Sequence[str]:
        """Members heard of within the session, sorted."""
        now = time.monotonic()
        with self._lock, mapped(self._shared.path):
            rows = self._connection.execute(
                "SELECT member FROM members WHERE grp=? AND topic=? AND seen_seconds BETWEEN ? AND ? ORDER BY member",
                (*self._group, now - self._session_seconds, now + self._session_seconds),
            ).fetchall()
        return [row[0] for row in rows]

    def commit(self, partition: int, committed: CommittedOffset) -> None:
        """Store an advisory position."""
        with self._lock, mapped(self._shared.path), transaction(self._connection, self._shared):
            self._connection.execute(
                "INSERT OR REPLACE INTO committed VALUES (?, ?, ?, ?, ?)",
                (*self._group, partition, committed.offset, committed.metadata),
            )

    def committed(self, partition: int) -> CommittedOffset | None:
        """The stored advisory position, or None."""
        with self._lock, mapped(self._shared.path):
            row = self._connection.execute(
                "SELECT offset, metadata FROM committed WHERE grp=? AND topic=? AND partition=?", (*self._group, partition)
            ).fetchone()
        return None if row is None else CommittedOffset(*row)

    def leave(self) -> None:
        """Take the member out at once, so that the others need not wait for the session to end."""
        with self._lock:
            if self._left.is_set():
                return
            self._left.set()
            try:
                with transaction(self._connection, self._shared):
                    self._connection.execute("DELETE FROM members WHERE grp=? AND topic=? AND member=?", (*self._group, self.member))
            except sqlite3.Error as error:  # closing goes on: the session ends by itself
                logger.warning("leaving the group failed: %s", error)
            self._connection.close()
