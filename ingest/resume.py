"""Where an ingest is: a journal per source and collection incarnation, so that an interrupted one goes on where it was.

    {"format": 1, "source": ..., "incarnation": ...}     first line; another source or incarnation is another ingest
    ["animals/cat.jpg", "5120:1764000000000000000", -1]  unit, stamp, entries acknowledged from its start (-1: all of them; null stamp: forgotten)
    {"items": 12, "size_bytes": 9, "rejected": {...}}    totals of the ingest so far; the last such line counts

Takes: what the log has acknowledged. Gives: how many of a unit's entries need not be sent again. Owns: the journal files under ``cache_dir``.
Never: holds anything that the log has not acknowledged; a torn or lost end only means that a few records are sent twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from contracts.collection import CollectionRecord
from contracts.errors import SettingsError

COMPLETE = -1
_FORMAT = 1
_SLACK_LINES = 10_000


@dataclass(slots=True)
class SourceTotals:
    """What was done with a source: items that the log acknowledged, their bytes, and rejected inputs by reason."""

    items: int = 0
    size_bytes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


class Journal:
    """The state of one source. One process at a time; its methods are called from one thread.

    Parameters
    ----------
    path : Path
        Its file; the folder is made.
    header : dict
        First line; a file with another one is begun anew.
    restart : bool
        Forget what is there.
    remembers : bool
        Keep what is noted in memory too (a watch compares with it); else only what an earlier run left.

    Raises
    ------
    SettingsError
        Another process ingests the same source, or the file cannot be written.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, restart: bool = False, remembers: bool = False) -> None:
        self._path, self._header, self._remembers = path, header, remembers
        self._units: dict[str, tuple[str, int]] = {}
        self._lines = 0
        self._waiting: list[str] = []
        self.totals = SourceTotals()
        self._lock = self._locked()
        try:
            if not restart:
                self._load()
            self._file = self._rewritten()
        except OSError as error:
            self._lock.close()
            raise self._unwritable(error) from None

    @classmethod
    def of(cls, folder: Path, identity: str, collection: CollectionRecord, *, restart: bool = False, remembers: bool = False) -> Self:
        """Journal of a source for a collection, below `folder`."""
        header = {"format": _FORMAT, "source": identity, "incarnation": collection.incarnation}
        return cls(_path(folder, identity, collection), header, restart=restart, remembers=remembers)

    @staticmethod
    def is_left(folder: Path, identity: str, collection: CollectionRecord) -> bool:
        """Whether an interrupted ingest, or a watch, of the source has left a journal: the next one goes on where it was."""
        return bool(identity) and _path(folder, identity, collection).exists()

    def done(self, unit: str, stamp: str) -> int:
        """How many of the unit's entries are acknowledged, from its start; COMPLETE for all; 0 where its stamp changed."""
        known = self._units.get(unit)
        return known[1] if known is not None and known[0] == stamp else 0

    def names(self) -> list[str]:
        """Units that are known."""
        return list(self._units)

    def note(self, unit: str, stamp: str, done: int) -> None:
        """Remember that the first `done` entries of a unit (COMPLETE: all) are acknowledged."""
        if self._remembers:
            self._units[unit] = (stamp, done)
        self._waiting.append(_line([unit, stamp, done]))

    def forget(self, unit: str) -> None:
        """The unit is gone."""
        self._units.pop(unit, None)
        self._waiting.append(_line([unit, None, 0]))

    def write(self) -> None:
        """Hand what was noted, and the totals, to the operating system: from here on they survive this process.

        Raises
        ------
        SettingsError
            The file cannot be written.
        """
        if not self._waiting:
            return
        self._waiting.append(_line(asdict(self.totals)))
        self._lines += len(self._waiting)
        try:
            self._file.write("".join(self._waiting))
            self._file.flush()
            self._waiting.clear()
            if self._remembers and self._lines > 2 * len(self._units) + _SLACK_LINES:
                self._file.close()
                self._file = self._rewritten()
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Let go of the files; what was written stays."""
        with suppress(OSError):  # what could not be written is sent twice
            self._file.close()
        self._lock.close()

    def remove(self) -> None:
        """After `close`: the ingest is finished, and leaves nothing behind."""
        for path in (self._path, self._path.with_suffix(".lock")):
            path.unlink(missing_ok=True)

    def _locked(self) -> IO[str]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._path.with_suffix(".lock").open("w")
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            source = self._header.get("source", "").split("|")[0]
            raise SettingsError(f"another process ingests {source} into this collection", hint="wait until it is done, or stop it") from None
        return lock

    def _unwritable(self, error: OSError) -> SettingsError:
        return SettingsError(f"{self._path}: cannot be written: {error.strerror}", hint="set HEADWATER_CACHE_DIR to a folder with room")

    def _load(self) -> None:
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8", errors="replace") as file:
            lines = _parsed(file)
            if next(lines, None) != self._header:
                return
            for line in lines:
                if isinstance(line, dict):
                    self.totals = SourceTotals(line["items"], line["size_bytes"], line["rejected"])
                elif line[1] is None:
                    self._units.pop(line[0], None)
                else:
                    self._units[line[0]] = (line[1], line[2])

    def _rewritten(self) -> IO[str]:
        """Replace the file by one without what is outdated, and keep it open for more."""
        lines = [_line(self._header), *(_line([unit, stamp, done]) for unit, (stamp, done) in self._units.items())]
        lines.append(_line(asdict(self.totals)))
        beside = self._path.with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        beside.replace(self._path)
        self._lines = len(lines)
        return self._path.open("a", encoding="utf-8")


def _path(folder: Path, identity: str, collection: CollectionRecord) -> Path:
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return folder / "ingest" / f"{collection.name}-{collection.incarnation}" / f"{name}.jsonl"


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _parsed(file: IO[str]) -> Iterator[Any]:
    """Lines of a journal up to the first that is torn or is none of ours."""
    for text in file:
        try:
            line = json.loads(text)
        except ValueError:
            return
        is_unit = isinstance(line, list) and [type(part) for part in line] in ([str, str, int], [str, type(None), int])
        if not text.endswith("\n") or not (is_unit or (isinstance(line, dict) and ("format" in line or _is_totals(line)))):
            return
        yield line


def _is_totals(line: dict[str, Any]) -> bool:
    rejected = line.get("rejected")
    return (
        all(type(line.get(name)) is int for name in ("items", "size_bytes"))
        and isinstance(rejected, dict)
        and all(type(count) is int for count in rejected.values())
    )
