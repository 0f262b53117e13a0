"""A file of the cache that is mapped before its bytes are there (docs/adr/0014-refine-codes-come-later.md).

It is as long as the object from the start, and its chunks come in any order: those that somebody waits for first, the others behind all other work.
A chunk counts once it equals its digest in the manifest. When all do, the file gets its name in the cache, and is one like all others.

Takes: a manifest entry, a store, threads. Gives: a mapping, and chunks of it as they are asked for. Owns: which chunks are there.
Never: says that a byte is there whose chunk was not compared with its digest.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.catalog.objects import read_again
from contracts.errors import CorruptError, HeadwaterError, SnapshotError, UnavailableError
from contracts.footer_file import CHUNK_BYTES
from contracts.manifest import ObjectEntry
from contracts.store import ObjectStore
from query.load_pool import ASKED, LAST, LoadPool

RUN_CHUNKS = 16
"""Most chunks of one request: who waits for the last one of it waits for all."""
GAP_CHUNKS = 1
"""Chunks that nobody asked for are read along where they lie between two that somebody did: they are needed later, and a request costs more (it and
the answer take 2.3 ms of processors, a chunk in a longer one 1.3)."""
RETRY_SECONDS, DAMAGED_SECONDS = 1.0, 30.0
"""How long nothing more is read behind other work after a store did not answer, and after it gave wrong bytes."""
_MISSING, _COMING, _HERE = 0, 1, 2
Do = Callable[[Callable[[], None]], "Future[None]"]
"""Does something, now or later."""


class PartialFile:
    """An object's file while its bytes come; thread-safe.

    Parameters
    ----------
    entry : ObjectEntry
        What the manifest says: it names a digest for each chunk.
    descriptor : int
        The file, open for reading and writing; closed with this.
    path : Path
        Where it lies meanwhile; nothing does any more when this goes.
    store : ObjectStore
        Where the bytes come from.
    block_bytes : int
        What is hashed and written at once.
    on_whole : callable
        Gives the file its name; called once, after the last chunk.

    Raises
    ------
    CorruptError
        The manifest's digests are not one for each chunk.
    """

    def __init__(
        self, entry: ObjectEntry, descriptor: int, path: Path, store: ObjectStore, block_bytes: int, on_whole: Callable[[PartialFile], None]
    ) -> None:
        self._discard = weakref.finalize(self, _discard, descriptor, path)
        self.entry, self.path = entry, path
        self._descriptor, self._store, self._block_bytes, self._on_whole = descriptor, store, block_bytes, on_whole
        self._digests = _digests(entry)
        os.ftruncate(descriptor, entry.size_bytes)
        self.mapped = mmap.mmap(descriptor, entry.size_bytes, access=mmap.ACCESS_READ)
        self._states = np.zeros(len(self._digests), np.uint8)
        self._changed = threading.Condition()
        self._queued, self._retry_at, self._is_named = 0, 0.0, False
        self.error: HeadwaterError | None = None

    @property
    def view(self) -> memoryview:
        """The whole file; only bytes that were brought may be looked at."""
        return memoryview(self.mapped)

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not here yet, by whole chunks."""
        return 0 if self._is_named else min(self.entry.size_bytes, int(np.count_nonzero(self._states != _HERE)) * CHUNK_BYTES)

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are here."""
        return self._is_named or bool((self._states == _HERE).all())

    def has(self, chunks: NDArray[np.int64]) -> bool:
        """Whether chunks, shape (n,), are here."""
        return bool((self._states[chunks] == _HERE).all())

    # ---- what somebody waits for ----------------------------------------------------------------------------------
    def bring(self, start: int, stop: int, between: Callable[[], None] = lambda: None) -> None:
        """Read the chunks that hold bytes ``[start, stop)``, in this thread, which does `between` after each.

        Raises
        ------
        SnapshotError
            The object is gone.
        CorruptError
            The store holds other bytes than the manifest says.
        UnavailableError
            The store does not answer, or the file cannot be written to.
        """
        self._begin(np.arange(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)), _at_once, between)()

    def ask(self, chunks: NDArray[np.int64], pool: LoadPool) -> Callable[[], None]:
        """Begin to read chunks, shape (n,), ascending, before other work of the pool; what is given back waits for them, and raises as `bring`."""
        return self._begin(chunks, partial(pool.submit, ASKED))

    def _begin(self, chunks: NDArray[np.int64], do: Do, between: Callable[[], None] = lambda: None) -> Callable[[], None]:
        futures = self._read_soon(chunks, do, between)

        def wait() -> None:
            pending = futures
            while True:
                try:
                    for each in pending:
                        each.result()
                except CancelledError:
                    raise UnavailableError("the node stops", hint="ask another one") from None
                with self._changed:
                    self._changed.wait_for(lambda: not (self._states[chunks] == _COMING).any())
                    if self.has(chunks):
                        return
                pending = self._read_soon(chunks, do, between)  # somebody else was to bring them, and could not

        return wait

    def _read_soon(self, chunks: NDArray[np.int64], do: Do, between: Callable[[], None]) -> list[Future[None]]:
        futures = []
        for first, stop in self._claimed(chunks):
            future = do(partial(self._read, first, stop, between))
            future.add_done_callback(partial(self._let_go, first, stop))
            futures.append(future)
        return futures

    def _claimed(self, chunks: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Runs ``[first, stop)`` of missing chunks that cover those of `chunks`, which are the caller's to read now."""
        with self._changed:
            runs = list(_runs(chunks[self._states[chunks] == _MISSING], self._states))
            for first, stop in runs:
                self._states[first:stop] = _COMING
        return runs

    def _let_go(self, first: int, stop: int, done: Future[None]) -> None:
        """Whatever became of a run: nobody reads it any more."""
        if done.cancelled():
            self._give_up(first, stop)

    def _give_up(self, first: int, stop: int) -> None:
        with self._changed:
            run = self._states[first:stop]
            run[run == _COMING] = _MISSING
            self._changed.notify_all()

    # ---- what comes behind other work -----------------------------------------------------------------------------
    def fill(self, pool: LoadPool) -> None:
        """Read all that is missing, behind any other work of the pool; nothing where that is under way, or failed a moment ago."""
        with self._changed:
            if self._is_named or self._queued or time.monotonic() < self._retry_at:
                return
            runs = list(_runs(np.flatnonzero(self._states == _MISSING), self._states))
            self._queued, self.error = len(runs), None
        for first, stop in runs:
            pool.submit(LAST, partial(_fill, weakref.ref(self), first, stop, pool.give_way))

    def _fill(self, first: int, stop: int, give_way: Callable[[], None]) -> None:
        try:
            if self.error is None:
                for run in self._claimed(np.arange(first, stop)):
                    self._read(*run, give_way)
        except HeadwaterError as error:
            self.error = error
            self._retry_at = time.monotonic() + (DAMAGED_SECONDS if isinstance(error, CorruptError) else RETRY_SECONDS)
        finally:
            with self._changed:
                self._queued -= 1

    # ---- reading --------------------------------------------------------------------------------------------------
    def _read(self, first: int, stop: int, between: Callable[[], None]) -> None:
        try:
            read_again(lambda: self._get(self._next(first, stop), stop, between))
        except OSError as error:
            raise unwritable(error) from error
        finally:
            self._give_up(first, stop)
        with self._changed:
            is_last = self.is_whole and not self._is_named
            self._is_named |= is_last
        if is_last:
            self.error = None
            self._on_whole(self)
            self._discard()  # nothing is left but the descriptor

    def _next(self, first: int, stop: int) -> int:
        """The first chunk of a run that is not here: what is here may be looked at, and is not written again."""
        return first + int(np.argmax(self._states[first:stop] != _HERE))

    def _get(self, first: int, stop: int, between: Callable[[], None]) -> None:
        key, at, end = self.entry.key, first * CHUNK_BYTES, min(stop * CHUNK_BYTES, self.entry.size_bytes)
        blocks = self._store.blocks(key, self._block_bytes, at, end - at)
        if blocks is None:
            raise SnapshotError(f"object {key} is gone", hint="reload the manifest")
        digest = hashlib.sha256()
        for piece, is_last in _cut(blocks, at, end):
            digest.update(piece)
            written = 0
            while written < len(piece):
                written += os.pwrite(self._descriptor, piece[written:], at + written)
            at += len(piece)
            if is_last:
                number = (at - 1) // CHUNK_BYTES
                if digest.digest() != self._digests[number]:
                    raise CorruptError(f"{key}: chunk {number} differs from the manifest's digest", hint=_RESTORE)
                digest = hashlib.sha256()
                with self._changed:
                    self._states[number] = _HERE
                    self._changed.notify_all()
                between()
        if at != end:
            raise CorruptError(f"{key}: it ends at byte {at}, the manifest says {self.entry.size_bytes}", hint=_RESTORE)


class PartialRefine:
    """The refine codes of a segment, in such a file (`vectors.absent_refine.RefineSource`).

    Parameters
    ----------
    file : PartialFile
        Holds them.
    start : int
        The byte at which the code of row 0 begins.
    width : int
        Bytes of a code.
    pool : LoadPool
        Reads what searches wait for.
    """

    def __init__(self, file: PartialFile, start: int, width: int, pool: LoadPool) -> None:
        self.file, self._start, self._width, self._pool = file, start, width, pool

    @property
    def is_whole(self) -> bool:
        """Whether all are here."""
        return self.file.is_whole

    def has(self, rows: NDArray[np.int64]) -> bool:
        """Whether the codes of rows, shape (n,), are here."""
        return self.file.has(self._chunks(rows))

    def ask(self, rows: NDArray[np.int64]) -> Callable[[], None]:
        """Begin to bring the codes of rows, shape (n,), ascending; errors as `PartialFile.bring`."""
        return self.file.ask(self._chunks(rows), self._pool)

    def bring_all(self) -> None:
        """Bring all codes, in this thread; errors as `PartialFile.bring`."""
        self.file.bring(0, self.file.entry.size_bytes)

    def _chunks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Chunks that hold codes, ascending: a code may begin in one and end in the next."""
        first = self._start + rows * self._width
        found: NDArray[np.int64] = np.unique(np.concatenate([first, first + self._width - 1]) // CHUNK_BYTES)
        return found


_RESTORE = "restore the object, or rebuild the index from the log"


def unwritable(error: OSError) -> UnavailableError:
    """The error of a cache whose folder cannot be used."""
    return UnavailableError(
        f"the cache cannot be used: {error.strerror or error}", hint="look at the disk of HEADWATER_CACHE_DIR: room, rights", code="cache_unwritable"
    )


def is_abandoned(path: Path) -> bool:
    """Whether the process that was filling this file is gone: its lock went with it."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _cut(blocks: Iterator[bytes], at: int, end: int) -> Iterator[tuple[memoryview, bool]]:
    """Pieces of the bytes ``[at, end)`` that cross no border of a chunk, and whether each is its chunk's last."""
    for block in blocks:
        view = memoryview(block)[: end - at]
        while view:
            piece = view[: CHUNK_BYTES - at % CHUNK_BYTES]
            at, view = at + len(piece), view[len(piece) :]
            yield piece, at % CHUNK_BYTES == 0 or at == end


def _runs(chunks: NDArray[np.int64], states: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Runs of at most `RUN_CHUNKS` missing chunks that hold these, shape (n,), ascending, with at most `GAP_CHUNKS` others between two of them."""
    if not len(chunks):
        return
    first = before = int(chunks[0])
    for chunk in map(int, chunks[1:]):
        if chunk - before > 1 + GAP_CHUNKS or chunk - first >= RUN_CHUNKS or states[before + 1 : chunk].any():
            yield first, before + 1
            first = chunk
        before = chunk
    yield first, before + 1


def _digests(entry: ObjectEntry) -> list[bytes]:
    try:
        joined = base64.b64decode(entry.chunks_sha256, validate=True)
    except ValueError:
        raise CorruptError(f"{entry.key}: the manifest's chunk digests are not base64") from None
    if len(joined) != 32 * -(-entry.size_bytes // CHUNK_BYTES):
        raise CorruptError(f"{entry.key}: {len(joined)} bytes of chunk digests in the manifest do not fit {entry.size_bytes} bytes")
    return [joined[start:stop] for start, stop in pairwise(range(0, len(joined) + 32, 32))]


def _at_once(work: Callable[[], None]) -> Future[None]:
    future: Future[None] = Future()
    try:
        work()
        future.set_result(None)
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)
    return future


def _fill(reference: weakref.ref[PartialFile], first: int, stop: int, give_way: Callable[[], None]) -> None:
    """A run of a file that somebody still needs."""
    file = reference()
    if file is not None:
        file._fill(first, stop, give_way)


def _discard(descriptor: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)
