"""The cache of stored objects on this machine's disk: files named by their sha256, mapped into memory.

A file is written under another name and renamed, so that no process sees half of one; it is compared with its sha256 when it is downloaded, and again
when a process opens it for the first time, since disks forget too. What differs is downloaded anew. So nothing is synced: a machine that loses power
loses some files of a cache, and a node that starts cold does not wait for its disk. Beyond the limit, files that were not
used for longest go first, but never one that this process has mapped. What was compacted away goes too, some time later.

Takes: manifest entries. Gives: their bytes, mapped. Owns: the folder. Never: hands out bytes that were not checked, or keeps a second copy in memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import math
import mmap
import os
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from backends.catalog.objects import read_again
from contracts.errors import CorruptError, SnapshotError
from contracts.manifest import ObjectEntry
from contracts.store import ObjectStore
from query.partial_file import PartialFile, is_abandoned, unwritable

logger = logging.getLogger(__name__)

BLOCK_BYTES = 512 * 1024
"""Read, hashed and written before the next is read: what lies in the processor's cache is neither fetched from memory again, nor is memory asked for
anew, which took a third of a download's time when blocks had 8 MiB."""
ABANDONED_SECONDS = 86_400.0
UNLOCKED_SECONDS = 60.0
"""What is younger may not be locked yet."""
SWEEP_SECONDS = 3600.0
"""How often at most the folder is looked through for what nobody uses any more."""
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Never through a link that somebody planted."""
_libc = ctypes.CDLL(None)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_TEMPORARY = ".part"
_names = count()


class SegmentCache:
    """Files of one folder; thread-safe, and safe for several processes that share the folder.

    Parameters
    ----------
    folder : Path
        Where the files lie; made where it is missing.
    store : ObjectStore
        Where they come from.
    limit_bytes : int
        Bytes of all files, 0 for no limit; exceeded only by what is mapped.
    unused_seconds : float
        After how long files that this process has not mapped are removed.
    """

    def __init__(self, folder: Path, store: ObjectStore, limit_bytes: int, unused_seconds: float = math.inf) -> None:
        self._folder, self._store, self._limit_bytes, self._unused_seconds = folder, store, limit_bytes, unused_seconds
        self._next_sweep = time.monotonic() + min(SWEEP_SECONDS, unused_seconds)  # not before a start has opened what it needs
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._mapped: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()
        self._partial: weakref.WeakValueDictionary[str, PartialFile] = weakref.WeakValueDictionary()
        self._checked: set[str] = set()
        self._remove_abandoned()
        self._size_bytes = sum(size for _, size, _ in self._files())

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, as far as this process knows."""
        return self._size_bytes

    def open(self, entry: ObjectEntry) -> memoryview:
        """The bytes of an object, mapped; downloaded where they are not here. The mapping lives as long as a view of it does.

        Raises
        ------
        SnapshotError
            The object is gone: it was compacted away; reload the manifest.
        CorruptError
            The store holds other bytes than the manifest says.
        UnavailableError
            The store does not answer; ``cache_unwritable``: the folder cannot be written to.
        """
        with self._opened(entry):
            return self._open(entry)

    def open_partly(self, entry: ObjectEntry) -> memoryview | PartialFile:
        """The same, where the bytes are here; else a file of which none are here that nobody asked for yet. Errors as `open`."""
        with self._opened(entry):
            found = self._partial.get(entry.sha256)
            if found is not None and not found.is_whole:
                return found
            if self._is_here(entry) or not entry.chunks_sha256:
                return self._open(entry)
            temporary = self._temporary(entry)
            made = PartialFile(entry, _new_file(temporary, entry.size_bytes), temporary, self._store, BLOCK_BYTES, self._name)
            self._partial[entry.sha256] = made
            return made

    @contextlib.contextmanager
    def _opened(self, entry: ObjectEntry) -> Iterator[None]:
        """One thread at a time opens an object."""
        with self._lock:
            opening = self._opening.setdefault(entry.sha256, threading.Lock())
        with opening:
            try:
                yield
            except OSError as error:
                raise unwritable(error) from error
            finally:
                with self._lock:
                    self._opening.pop(entry.sha256, None)

    def _is_here(self, entry: ObjectEntry) -> bool:
        return entry.sha256 in self._mapped or self._path(entry).exists()

    def _path(self, entry: ObjectEntry) -> Path:
        return self._folder / entry.sha256[:2] / entry.sha256

    def _temporary(self, entry: ObjectEntry) -> Path:
        path = self._path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{entry.sha256}.{os.getpid()}.{next(_names)}{_TEMPORARY}")

    def _name(self, file: PartialFile) -> None:
        """Let a file whose bytes are all here be one of the cache's."""
        entry = file.entry
        with self._lock:
            self._checked.add(entry.sha256)
            self._mapped[entry.sha256] = file.mapped
        try:
            file.path.replace(self._path(entry))
        except OSError as error:  # it is good as long as it is mapped; another start downloads it anew
            logger.warning("a file of the cache cannot be renamed: %s", error)
            return
        with self._lock:
            self._size_bytes += entry.size_bytes
        self._evict(entry.sha256)

    def _open(self, entry: ObjectEntry) -> memoryview:
        partial = self._partial.get(entry.sha256)
        if partial is not None:
            partial.bring(0, entry.size_bytes)
            return partial.view
        found = self._mapped.get(entry.sha256)
        if found is not None:
            return memoryview(found)
        path = self._path(entry)
        mapped = self._map(path, entry)
        if mapped is None:
            read_again(lambda: self._download(path, entry))
            mapped = _mapped(path)
            if mapped is None or len(mapped) != entry.size_bytes:
                raise CorruptError(f"{entry.key}: its file in the cache changed while it was written", hint="look for another program in the folder")
        with self._lock:
            self._checked.add(entry.sha256)
            self._mapped[entry.sha256] = mapped
        os.utime(path)
        return memoryview(mapped)

    def _map(self, path: Path, entry: ObjectEntry) -> mmap.mmap | None:
        mapped = _mapped(path)
        if mapped is None:
            return None
        whole = len(mapped) == entry.size_bytes
        if whole and (entry.sha256 in self._checked or hashlib.sha256(mapped).hexdigest() == entry.sha256):
            return mapped
        logger.warning("a file of the cache is damaged and is downloaded anew: %s", entry.key)
        self._remove(path, len(mapped))
        return None

    def _download(self, path: Path, entry: ObjectEntry) -> None:
        temporary = self._temporary(entry)
        digest, written = hashlib.sha256(), 0
        blocks = self._store.blocks(entry.key, BLOCK_BYTES)
        if blocks is None:
            raise SnapshotError(f"object {entry.key} is gone", hint="reload the manifest")
        try:
            with os.fdopen(_new_file(temporary, entry.size_bytes), "wb", buffering=0) as file:
                for block in blocks:
                    digest.update(block)
                    view = memoryview(block)
                    while view:
                        view = view[file.write(view) :]
                    written += len(block)
                if written != entry.size_bytes or digest.hexdigest() != entry.sha256:
                    raise CorruptError(
                        f"{entry.key}: {written} bytes whose size or sha256 differs from the manifest's",
                        hint="restore the object, or rebuild the index from the log",
                    )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        with self._lock:
            self._size_bytes += written
        self._evict(entry.sha256)

    # ---- room -----------------------------------------------------------------------------------------------------
    def _evict(self, newest: str) -> None:
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + min(SWEEP_SECONDS, self._unused_seconds)
            unused_since = time.time() - self._unused_seconds
            for used_at, size, path in self._files():
                if used_at < unused_since and self._is_idle(path, newest):
                    self._remove(path, size)
        if not self._limit_bytes or self._size_bytes <= self._limit_bytes:
            return
        files = sorted(self._files())
        with self._lock:
            self._size_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._size_bytes <= self._limit_bytes:
                return
            if self._is_idle(path, newest):
                self._remove(path, size)

    def _is_idle(self, path: Path, newest: str) -> bool:
        return path.name != newest and path.name not in self._mapped and path.name not in self._opening

    def _remove(self, path: Path, size: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.unlink()
        with self._lock:
            self._size_bytes -= size
            self._checked.discard(path.name)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, bytes and path of every file."""
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                if not path.name.endswith(_TEMPORARY):
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path

    def _remove_abandoned(self) -> None:
        """Files that a process did not finish: it is gone, or they are older than a day."""
        for path in self._folder.glob(f"??/*{_TEMPORARY}"):
            with contextlib.suppress(FileNotFoundError):
                age_seconds = time.time() - path.stat().st_mtime
                if age_seconds > ABANDONED_SECONDS or (age_seconds > UNLOCKED_SECONDS and is_abandoned(path)):
                    path.unlink()


def _new_file(path: Path, size_bytes: int) -> int:
    """A descriptor of a new file, locked as long as somebody fills it, with the disk's blocks for so many bytes.

    To have them at once saves two fifths of what writing costs; where they cannot be had, writing goes on as it can.
    """
    descriptor = os.open(path, _NEW_FILE, 0o600)
    with contextlib.suppress(OSError):  # some file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _libc.fallocate(descriptor, 0, 0, size_bytes)
    return descriptor


def _mapped(path: Path) -> mmap.mmap | None:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # none, or an empty one, which cannot be mapped
        return None
