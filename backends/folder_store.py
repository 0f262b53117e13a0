"""The object store in a folder of a local file system (POSIX), safe among many processes.

Takes: keys and bytes. Gives: what `contracts.store.ObjectStore` promises. Owns: the folder; a key is a path below it.
Never: shows a partial object, writes into a stored file, or follows a symbolic link below its folder.

An object appears by link(2), which creates a name or fails, never replaces (POSIX.1-2017, link): of many creators one wins.
Its bytes are synced before, its folder after. Unlike on S3, ``a`` and ``a/b`` cannot both be objects.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from backends.store_rules import check_prefix, check_range, prove_conditions
from contracts.clock import Clock, SystemClock
from contracts.errors import SettingsError, UnavailableError
from contracts.object_keys import validate_key
from contracts.store import BucketObject, ObjectInfo, PutOutcome, StoredObject

logger = logging.getLogger(__name__)

# No key can name these two: ``~`` is not in the alphabet of keys.
TEMPORARY_FOLDER = "~temporary"
LOCK_FILE = "~lock"
LEFTOVER_SECONDS = 86400.0
"""A temporary file this old belongs to a process that died: no put takes a day."""
_LINK_ATTEMPTS = 64
_Entries = list[tuple[str, os.stat_result | None]]
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the file system says into what the caller can do about it."""
    try:
        yield
    except OSError as error:
        text = f"{what}: {os.strerror(error.errno or 0)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnavailableError(text, hint="free space on the store's disk", code="store_full") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SettingsError(text, hint="give this user write access to the store's folder", code="store_refused") from error
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise SettingsError(text, hint="an object cannot lie below another, behind a symbolic link, or have names over 255 bytes") from error
        raise UnavailableError(text, hint="check the store's disk") from error


class FolderStore:
    """Objects as files; any number of threads and processes may use one folder, on a file system with hard links.

    Parameters
    ----------
    root : Path
        The folder; it is made where it is missing.
    clock : Clock, optional
        Gives the times of creation.

    Raises
    ------
    SettingsError
        The folder cannot be made, read or written.
    """

    def __init__(self, root: Path, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._path = root.absolute()
        with _explained(f"folder store {self._path}"):
            (self._path / TEMPORARY_FOLDER).mkdir(parents=True, exist_ok=True)
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._temporary = os.open(TEMPORARY_FOLDER, _FOLDER_FLAGS, dir_fd=self._root)
            if not os.access(self._path / TEMPORARY_FOLDER, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable")
            self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        oldest = self._clock.now_seconds() - LEFTOVER_SECONDS
        for name in os.listdir(self._temporary):  # noqa: PTH208 - pathlib cannot list a descriptor
            with contextlib.suppress(FileNotFoundError):  # another process cleans up too, or a put just ended
                if os.stat(name, dir_fd=self._temporary, follow_symlinks=False).st_mtime < oldest:
                    os.unlink(name, dir_fd=self._temporary)
                    logger.info("removed what a dead process left", extra={"file": name})

    # ---- writing ------------------------------------------------------------------------------------------------

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        """Create `key`; exactly one of many concurrent callers gets CREATED."""
        validate_key(key)
        with _explained(f"folder store {self._path}: put {key}"):
            if self._exists(key):  # saves writing the bytes; whoever passes here is still judged by link()
                return PutOutcome.EXISTS
            name = self._write_temporary(data, int(self._clock.now_seconds() * 1e9))
            try:
                return self._link(name, key)
            finally:
                with contextlib.suppress(OSError):  # a leftover harms nobody, and the outcome stands
                    os.unlink(name, dir_fd=self._temporary)

    def _exists(self, key: str) -> bool:
        """Whether the object is there; then its name is synced too, for its creator may not have come that far."""
        try:
            with self._folder_of(key) as (folder, name):
                if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise IsADirectoryError(errno.EISDIR, "not an object")
                os.fsync(folder)
        except FileNotFoundError:
            return False
        return True

    def _write_temporary(self, data: bytes, modified_nanoseconds: int) -> str:
        name = f"{os.getpid()}-{secrets.token_hex(12)}"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=self._temporary)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.utime(descriptor, ns=(modified_nanoseconds, modified_nanoseconds))
            os.fsync(descriptor)
        except BaseException:  # a full disk above all: give the space back
            os.unlink(name, dir_fd=self._temporary)
            raise
        finally:
            os.close(descriptor)
        return name

    def _link(self, temporary: str, key: str) -> PutOutcome:
        for _ in range(_LINK_ATTEMPTS):
            try:
                with self._folder_of(key, create=True) as (folder, name):
                    try:
                        os.link(temporary, name, src_dir_fd=self._temporary, dst_dir_fd=folder, follow_symlinks=False)
                        outcome = PutOutcome.CREATED
                    except FileExistsError:
                        outcome = PutOutcome.EXISTS
                    return self._synced(folder, key, outcome)
            except FileNotFoundError:
                continue  # a delete removed the folder, which was empty, between our two steps
        raise OSError(errno.EBUSY, "folders vanish again and again")

    def _synced(self, folder: int, key: str, outcome: PutOutcome) -> PutOutcome:
        """Sync the folder; where that fails the name may or may not outlive a power cut."""
        try:
            os.fsync(folder)
        except OSError as error:
            logger.warning("folder could not be synced", extra={"object_key": key, "cause": errno.errorcode.get(error.errno or 0)})
            return PutOutcome.UNKNOWN
        return outcome

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        """Replace `key` if its entity tag is `etag` (None: if it does not exist), one at a time under the store's lock."""
        if etag is None:
            return self.put_if_absent(key, data)
        validate_key(key)
        with _explained(f"folder store {self._path}: replace {key}"), self._locked():
            try:
                with self._folder_of(key) as (folder, name):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if not stat.S_ISREG(found.st_mode) or _etag(found) != etag:
                        return PutOutcome.EXISTS
                    # Times of one key only rise, so that a tag never comes again even where the inode does.
                    modified = max(int(self._clock.now_seconds() * 1e9), found.st_mtime_ns + 1)
                    self._replace(self._write_temporary(data, modified), folder, name)
                    return self._synced(folder, key, PutOutcome.CREATED)
            except FileNotFoundError:
                return PutOutcome.EXISTS

    def _replace(self, temporary: str, folder: int, name: str) -> None:
        try:
            os.replace(temporary, name, src_dir_fd=self._temporary, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=self._temporary)
            raise

    def delete(self, key: str) -> None:
        """Remove the object and the folders that it leaves empty; no error when it is not there."""
        validate_key(key)
        with _explained(f"folder store {self._path}: delete {key}"), self._locked():
            try:
                with self._folder_of(key) as (folder, name):
                    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        return
                    os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                return
            self._remove_empty_folders(key)

    def _remove_empty_folders(self, key: str) -> None:
        parts = key.split("/")[:-1]
        while parts:
            try:
                with self._folder_of("/".join(parts)) as (folder, name):
                    os.rmdir(name, dir_fd=folder)
            except OSError:  # not empty, as a rule; an empty folder that stays harms nobody
                return
            parts.pop()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store's lock: flock(2) goes with the descriptor, so threads exclude each other as processes do."""
        descriptor = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=self._root)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # ---- reading ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> StoredObject | None:
        """The whole object, or None."""
        with self._opened(key) as opened:
            if opened is None:
                return None
            descriptor, found = opened
            return StoredObject(self._read(descriptor, 0, found.st_size, key), _etag(found))

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """Up to `length` bytes from `start`; shorter only at the object's end; None when there is no object."""
        check_range(start, length)
        with self._opened(key) as opened:
            if opened is None:
                return None
            descriptor, found = opened
            return self._read(descriptor, start, max(0, min(length, found.st_size - start)), key)

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        """The object's bytes from `start` on in order, at most `block_bytes` at a time; None when there is no object."""
        check_range(start, length or 0)
        reading = self._blocks(key, block_bytes, start, length)
        return None if next(reading, None) is None else reading

    def _blocks(self, key: str, block_bytes: int, start: int, length: int | None) -> Iterator[bytes]:
        """First nothing, once the file is open, then its blocks."""
        with self._opened(key) as opened:
            if opened is None:
                return
            yield b""
            descriptor, size_bytes = opened[0], opened[1].st_size
            stop = size_bytes if length is None else min(size_bytes, start + length)
            for at in range(start, stop, block_bytes):
                yield self._read(descriptor, at, min(block_bytes, stop - at), key)

    def get_from_bucket(self, bucket: str, name: str, version_id: str | None, most_bytes: int) -> BucketObject | None:
        """Refuse: a folder has no buckets."""
        raise SettingsError(
            "a folder has no buckets to read objects from", hint="set HEADWATER_STORE_URL to the S3 store that sends the notifications"
        )

    def head(self, key: str) -> ObjectInfo | None:
        """The object's size and tag, or None."""
        with self._opened(key) as opened:
            return None if opened is None else _info(key, opened[1])

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result] | None]:
        validate_key(key)
        with _explained(f"folder store {self._path}: read {key}"), contextlib.ExitStack() as stack:
            try:
                with self._folder_of(key) as (folder, name):
                    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
            except (FileNotFoundError, NotADirectoryError) as error:
                if isinstance(error, NotADirectoryError) and self._has_link(key):
                    raise
                yield None
                return
            stack.callback(os.close, descriptor)
            found = os.fstat(descriptor)
            yield (descriptor, found) if stat.S_ISREG(found.st_mode) else None

    def _has_link(self, key: str) -> bool:
        """Whether a symbolic link, rather than an object, stands where `key` has a folder."""
        parts = key.split("/")
        return any(self._path.joinpath(*parts[:depth]).is_symlink() for depth in range(1, len(parts)))

    def _read(self, descriptor: int, start: int, length: int, key: str) -> bytes:
        pieces = []
        while length:
            piece = os.pread(descriptor, length, start)
            if not piece:  # a stored file never shrinks: somebody else wrote into it
                raise OSError(errno.EIO, "shorter than its size")
            pieces.append(piece)
            start += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys begin with `prefix` and sort after `start_after`, in key order."""
        check_prefix(prefix)
        check_prefix(start_after)
        return self._walk("", prefix, start_after)

    def _walk(self, path: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """List the folder `path` ("" or with a trailing slash), entering only folders that may hold wanted keys."""
        for name, found in self._entries(path):
            key = path + name
            if found is None:
                below = key + "/"
                is_wanted = below.startswith(prefix) or prefix.startswith(below)
                if is_wanted and (below > start_after or start_after.startswith(below)):
                    yield from self._walk(below, prefix, start_after)
            elif key.startswith(prefix) and key > start_after:
                yield _info(key, found)

    def _entries(self, path: str) -> _Entries:
        """Names in a folder in the order of their keys; folders have no stat and sort as if they ended in a slash."""
        entries: _Entries = []
        with _explained(f"folder store {self._path}: list {path}"), contextlib.suppress(FileNotFoundError):
            with self._folder_of(path + "-") as (folder, _), os.scandir(folder) as scan:
                for entry in scan:
                    if entry.name.startswith("~"):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        if entry.is_dir(follow_symlinks=False):
                            entries.append((entry.name, None))
                        elif entry.is_file(follow_symlinks=False):
                            entries.append((entry.name, entry.stat(follow_symlinks=False)))
        return sorted(entries, key=lambda item: item[0] if item[1] is not None else item[0] + "/")

    # ---- the tree -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _folder_of(self, key: str, create: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that holds `key`, step by step and through no symbolic link; gives its descriptor and the last name."""
        *folders, name = key.split("/")
        # Opened anew, not dup'ed: duplicates share one position in the directory, and two threads that list would skip each other's names.
        current = os.open(".", _FOLDER_FLAGS, dir_fd=self._root)
        try:
            for folder in folders:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, dir_fd=current)
                        os.fsync(current)
                deeper = os.open(folder, _FOLDER_FLAGS, dir_fd=current)
                os.close(current)
                current = deeper
            yield current, name
        finally:
            os.close(current)

    def probe(self, prefix: str) -> None:
        """Prove that conditions are honoured (`backends.store_rules.prove_conditions`)."""
        prove_conditions(self, prefix)

    def close(self) -> None:
        """Let go of the folder; closing twice does nothing."""
        if self._root >= 0:
            os.close(self._root)
            os.close(self._temporary)
            self._root = self._temporary = -1  # or a second close would hit whoever got the numbers since


def _etag(found: os.stat_result) -> str:
    """Tag of a stored file: files are never written to again, so time, inode and size name its content."""
    return f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, _etag(found), found.st_mtime)
