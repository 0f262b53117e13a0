"""One SQLite file that holds a log: schema, connections, and what the connections of one process share.

Takes: a path. Gives: configured connections, sqlite3's errors in our words, the watch that wakes readers.
Owns: the table layout and its version (``PRAGMA user_version``), the packing of headers. Never: knows offsets or groups.

Durability: write-ahead log with ``synchronous=FULL``, so a commit that returned has been fsynced
(https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.log_rules import closed, new_identity
from backends.sqlite_watch import TopicWatch
from contracts.errors import CorruptError, HeadwaterError, SettingsError, UnavailableError
from contracts.log import Headers, ReadHeaders

FORMAT_VERSION = 1
APPLICATION_ID = 0x48574C47  # "HWLG" in the file's header, so that another program's database is never taken for a log

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cluster (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS topics (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, identity TEXT NOT NULL,
    partitions INTEGER NOT NULL, retention_ms INTEGER NOT NULL, max_record_bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS partitions (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, start_offset INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL,
    headers BLOB NOT NULL, key BLOB, value BLOB, PRIMARY KEY (topic, partition, offset));
CREATE TABLE IF NOT EXISTS members (
    grp TEXT NOT NULL, topic TEXT NOT NULL, member TEXT NOT NULL, seen_seconds REAL NOT NULL,
    PRIMARY KEY (grp, topic, member)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS committed (
    grp TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL, metadata TEXT NOT NULL,
    PRIMARY KEY (grp, topic, partition)) WITHOUT ROWID;
"""

_FREE_DISK = "free disk space where the log lies, then start again"
_WRONG_FILE = "check HEADWATER_LOG_URL; restore the file from a copy if it was a log"


class SharedFile:
    """What all connections of this process to one file share.

    Attributes
    ----------
    append_lock : threading.Lock
        Held around write transactions, so that threads of one process queue here and not in SQLite's busy back-off.
    watch : TopicWatch
        Wakes the readers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.append_lock = threading.Lock()
        self.watch = TopicWatch(path)


_shared: dict[Path, SharedFile] = {}
_shared_lock = threading.Lock()


def shared_file(path: Path) -> SharedFile:
    """The process's one `SharedFile` of that path."""
    path = path.absolute()
    with _shared_lock:
        return _shared.setdefault(path, SharedFile(path))


_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", "wait, or stop the process that holds it"),
    sqlite3.SQLITE_LOCKED: ("is locked", "wait and try again"),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", _FREE_DISK),
    sqlite3.SQLITE_IOERR: ("cannot be read or written", "check the disk; do not put the log on a network file system"),
    sqlite3.SQLITE_NOMEM: ("needs more memory than there is", "stop other processes or send smaller records"),
}
_SETTINGS = {
    sqlite3.SQLITE_READONLY: ("is read-only", "give this user write access to the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "check HEADWATER_LOG_URL and the rights of the folder"),
    sqlite3.SQLITE_PERM: ("may not be opened", "check the rights of the file"),
    sqlite3.SQLITE_AUTH: ("may not be opened", "check the rights of the file"),
    sqlite3.SQLITE_TOOBIG: ("does not take a record this large", "store the media and send hw_payload_ref"),
}
_CORRUPT = {
    sqlite3.SQLITE_NOTADB: ("is not an SQLite database", _WRONG_FILE),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "restore the file from a copy"),
}


def sqlite_error(error: sqlite3.Error, path: Path) -> HeadwaterError:
    """Our error for one of sqlite3's, by its primary result code (https://www.sqlite.org/rescode.html)."""
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return closed("log")
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    kinds: tuple[tuple[type[HeadwaterError], dict[int, tuple[str, str]]], ...] = (
        (UnavailableError, _UNAVAILABLE),
        (SettingsError, _SETTINGS),
        (CorruptError, _CORRUPT),
    )
    for kind, words in kinds:
        if primary in words:
            what, hint = words[primary]
            return kind(f"log {path} {what}", hint=hint)
    return UnavailableError(f"log {path} failed: {error}", hint="try again; run headwater doctor if it stays")


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn sqlite3's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_error(error, path) from error


def connect(path: Path, *, lock_seconds: float, durable: bool = True) -> sqlite3.Connection:
    """Open a connection in autocommit mode; transactions are written out as BEGIN and COMMIT.

    Parameters
    ----------
    lock_seconds : float
        How long to wait for another process's write lock.
    durable : bool
        False leaves out the fsync per commit (heartbeats); such a commit may be lost with the machine, not with the process.
    """
    connection = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, shared: SharedFile) -> Iterator[None]:
    """A write transaction, alone in this process; the readers' watch is told of its commit."""
    with shared.append_lock:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite itself rolls back after some errors, a full disk among them
                connection.execute("ROLLBACK")
            raise
    shared.watch.look()


def prepare(shared: SharedFile, lock_seconds: float) -> None:
    """Create the folder, the file and its tables where they are missing, and check that the file is ours.

    Raises
    ------
    SettingsError
        The folder cannot be made, the file cannot be written, or it holds something else.
    CorruptError
        The file is not an SQLite database.
    UnavailableError
        Another process keeps it locked.
    """
    try:
        shared.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"folder {shared.path.parent} cannot be made: {error.strerror}", hint="check HEADWATER_LOG_URL") from error
    with mapped(shared.path):
        connection = connect(shared.path, lock_seconds=lock_seconds)
        try:
            _check_owner(connection, shared.path)
            connection.execute("PRAGMA page_size=8192")  # media-sized values: fewer overflow pages
            _set_wal(connection, lock_seconds)
            with transaction(connection, shared):
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                if connection.execute("SELECT count(*) FROM cluster").fetchone()[0] == 0:
                    connection.execute("INSERT INTO cluster VALUES (?)", (new_identity(),))
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={FORMAT_VERSION}")
        finally:
            connection.close()


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and owner != APPLICATION_ID:
        raise SettingsError(f"{path} is another program's database", hint=_WRONG_FILE)
    if version > FORMAT_VERSION:
        raise SettingsError(f"log {path} has format {version}; this headwater reads {FORMAT_VERSION}", hint="install a newer headwater")


def _set_wal(connection: sqlite3.Connection, lock_seconds: float) -> None:
    # Two processes that make the file at once: switching to WAL answers "locked" without waiting for the other.
    deadline = time.monotonic() + lock_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


_LENGTHS = struct.Struct("<HI")


def pack_headers(headers: ReadHeaders) -> bytes:
    """Headers as bytes: per header the lengths of name and value (uint16, uint32, little-endian), then both."""
    packed = bytearray()
    for name, value in headers:
        raw, value = name.encode(), value or b""
        packed += _LENGTHS.pack(len(raw), len(value)) + raw + value
    return bytes(packed)


def unpack_headers(packed: bytes) -> Headers:
    """The inverse of `pack_headers`."""
    headers: list[tuple[str, bytes]] = []
    at = 0
    while at < len(packed):
        name_bytes, value_bytes = _LENGTHS.unpack_from(packed, at)
        at += _LENGTHS.size
        name = packed[at : at + name_bytes].decode()
        at += name_bytes
        headers.append((name, packed[at : at + value_bytes]))
        at += value_bytes
    return tuple(headers)
