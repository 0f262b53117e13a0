"""A folder: its pictures and texts to the bottom, each with what lies beside it and what the captions file says.

Pictures are known by their first bytes, never by their names. Beside ``x.jpg``, ``x.txt`` is its caption and ``x.json`` its fields
(`ingest.row_item`); a ``.txt`` without a picture is a text of its own. The captions file wins over both.

Takes: a folder, the collection's rules. Gives: a unit per file. Owns: the ids: the path below the folder, with forward slashes.
Never: follows linked folders, reads hidden files, or holds more than one folder's names.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contracts import canonical_json
from contracts.errors import SettingsError
from contracts.media_record import TEXT_TYPE
from ingest.captions import CAPTIONS_FILE, CaptionRow, read_captions
from ingest.input_item import InputError, InputItem, InputRules, RejectedInput
from ingest.media_file import TEXT_SUFFIX, decoded_text, media_type, read_file, sniffed_type
from ingest.row_item import annotations_of, item_identity, media_item, parsed_cell
from ingest.tar_source import json_columns

JSON_SUFFIX = ".json"
_SIDECAR_LIMIT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file of a folder as the walk saw it."""

    path: Path
    size_bytes: int
    changed_ns: int

    @property
    def stamp(self) -> str:
        return f"{self.size_bytes}:{self.changed_ns}"


@dataclass(slots=True)
class FileUnit:
    """One picture or text file with what belongs to it (`ingest.input_item.InputUnit`)."""

    path: Path
    rules: InputRules
    name: str
    content_type: str
    stamp: str
    size_bytes: int
    changed_at: float
    row: CaptionRow | None = None
    text: Path | None = None
    fields: Path | None = None
    batch_rows: int = 1
    _is_read: bool = False

    def read(self, skip: int) -> Iterator[InputItem | RejectedInput]:
        """The one item."""
        if skip:
            return
        try:
            yield self._item()
        except InputError as error:
            yield RejectedInput(str(self.path), error.reason, error.message)

    def read_bytes(self) -> int:
        """All or nothing."""
        return self.size_bytes if self._is_read else 0

    @property
    def caption(self) -> str | None:
        """Caption out of the captions file."""
        return None if self.row is None else self.row.caption

    def _item(self) -> InputItem:
        self._is_read = True
        data = read_file(self.path, self.rules.max_media_bytes)
        kind = media_type(data, self.path.name, self.rules)
        values = {} if self.fields is None else json_columns(read_file(self.fields, _SIDECAR_LIMIT_BYTES))
        if self.text is not None:
            values["caption"] = decoded_text(read_file(self.text, self.rules.max_text_bytes), self.rules).strip()
        if self.row is not None:
            cells = {name: parsed_cell(text, self.rules.attributes.get(name, "text")) for name, text in self.row.cells.items()}
            values |= {f"attributes.{name}": value for name, value in cells.items()} | ({"caption": self.caption} if self.caption else {})
        values = {name: value for name, value in values.items() if value is not None and name != "id"}  # the id is where the file lies
        return media_item(str(self.path), item_identity(values, self.name), data, kind, annotations_of(values, self.rules))


@dataclass(slots=True)
class FolderSource:
    """A folder to ingest (`ingest.input_item.InputSource`).

    Parameters
    ----------
    path : Path
        The folder.
    rules : InputRules
        Of the collection.
    captions : Mapping, optional
        Rows that stand in for the folder's own captions file.

    Notes
    -----
    After a walk, `other_files` counts files that are no media, `named` holds the captions' files that were found, and `broken` the folders
    that could not be read.
    """

    path: Path
    rules: InputRules
    captions: Mapping[str, CaptionRow] | None = None
    other_files: int = 0
    named: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    _own: Mapping[str, CaptionRow] = field(default_factory=dict)
    _own_stamp: str = ""
    _types: dict[str, tuple[str, str]] | None = None

    @property
    def identity(self) -> str:
        """The folder's own path."""
        return str(self.path.resolve())

    @property
    def rows(self) -> Mapping[str, CaptionRow]:
        """Rows of the captions file that is in use."""
        return self._own if self.captions is None else self.captions

    def check(self) -> None:
        """Read the captions file.

        Raises
        ------
        SettingsError
            It cannot be read.
        """
        own = self.path / CAPTIONS_FILE
        if self.captions is None and own.is_file():
            self._own, self._own_stamp = read_captions(own), _look(own).stamp

    def remember_types(self) -> None:
        """Keep each file's type while it does not change, for walks that come again and again."""
        self._types = {}

    def reload_captions(self, is_settled: Callable[[float], bool]) -> None:
        """Take the folder's captions file again where it changed and is written to no more; one that cannot be read changes nothing."""
        own = self.path / CAPTIONS_FILE
        try:
            seen = _look(own) if self.captions is None and own.is_file() else None
            if seen is not None and seen.stamp != self._own_stamp and is_settled(seen.changed_ns / 1e9):
                self._own, self._own_stamp = read_captions(own), seen.stamp
        except (OSError, SettingsError):
            return

    def size_bytes(self) -> int:
        """Bytes of all files below the folder."""
        total = 0
        for parent, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if not name.startswith("."):
                    try:
                        total += Path(parent, name).stat().st_size
                    except OSError:
                        continue
        return total

    def units(self) -> Iterator[FileUnit | RejectedInput]:
        """A unit per picture or text, folder by folder, names in order; what cannot be looked at is rejected."""
        self.other_files, self.named, self.broken = 0, set(), []
        failed: list[OSError] = []
        for parent, folders, names in os.walk(self.path, onerror=failed.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from self._folder(Path(parent), sorted(name for name in names if not name.startswith(".")))
        for error in failed:
            self.broken.append(str(error.filename))
            yield RejectedInput(str(error.filename), "unreadable", f"cannot be read: {error.strerror}")

    def _folder(self, parent: Path, names: list[str]) -> Iterator[FileUnit | RejectedInput]:
        if parent == self.path and CAPTIONS_FILE in names:
            names.remove(CAPTIONS_FILE)
        found: dict[str, tuple[_Seen, str]] = {}
        for name in names:
            try:
                seen = _look(parent / name)
                found[name] = (seen, self._type(seen))
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not (parent / name).is_symlink():
                    continue  # gone since it was listed
                self.broken.append(str(parent / name))
                self.named.add(self._id(parent / name))
                yield RejectedInput(str(parent / name), "unreadable", f"cannot be read: {error.strerror}")
        pictures = {_stem(name) for name, (_, kind) in found.items() if kind not in ("", TEXT_TYPE)}
        texts = {_stem(name) for name, (_, kind) in found.items() if kind == TEXT_TYPE}
        for name, (seen, kind) in found.items():
            if (kind == TEXT_TYPE and _stem(name) in pictures) or (
                not kind and name.lower().endswith(JSON_SUFFIX) and _stem(name) in pictures | texts
            ):
                continue  # it lies beside its picture
            if not kind:
                self.other_files += 1
                continue
            yield self._unit(seen, kind, found)

    def _type(self, seen: _Seen) -> str:
        if self._types is None:
            return sniffed_type(seen.path) if seen.size_bytes >= 0 else ""
        known = self._types.get(str(seen.path))
        if known is None or known[0] != seen.stamp:
            known = self._types[str(seen.path)] = (seen.stamp, sniffed_type(seen.path) if seen.size_bytes >= 0 else "")
        return known[1]

    def _unit(self, seen: _Seen, kind: str, found: Mapping[str, tuple[_Seen, str]]) -> FileUnit:
        name = self._id(seen.path)
        self.named.add(name)
        row = self.rows.get(name)
        beside = {suffix: self._beside(seen, suffix, found) for suffix in (TEXT_SUFFIX, JSON_SUFFIX)}
        text, fields = (None if kind == TEXT_TYPE else beside[TEXT_SUFFIX]), beside[JSON_SUFFIX]
        parts = [part for part in (seen, text, fields) if part is not None]
        stamp = "|".join(part.stamp for part in parts)
        if row is not None:
            stamp += f"|{zlib.crc32(canonical_json.dump([row.caption, dict(row.cells)])):08x}"
        unit = FileUnit(seen.path, self.rules, name, kind, stamp, seen.size_bytes, max(part.changed_ns for part in parts) / 1e9, row)
        unit.text, unit.fields = (None if part is None else part.path for part in (text, fields))
        return unit

    @staticmethod
    def _beside(seen: _Seen, suffix: str, found: Mapping[str, tuple[_Seen, str]]) -> _Seen | None:
        """The sidecar of that suffix; a file that is a picture itself is none."""
        other = found.get(_stem(seen.path.name) + suffix)
        return other[0] if other is not None and other[0].path != seen.path and other[1] in ("", TEXT_TYPE) else None

    def _id(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _look(path: Path) -> _Seen:
    """The file as it is now; size -1 for what is no file (a socket, a pipe)."""
    found = path.stat()
    return _Seen(path, found.st_size if stat.S_ISREG(found.st_mode) else -1, found.st_mtime_ns)


def single_file(path: Path, rules: InputRules, row: CaptionRow | None) -> FileUnit:
    """Unit of a file that was named itself.

    Raises
    ------
    SettingsError
        It cannot be read, or is nothing that is ingested.
    """
    try:
        seen = _look(path)
        kind = sniffed_type(path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}", hint="check its permissions") from None
    if not kind:
        raise SettingsError(
            f"{path} is none of a picture, a .txt, a manifest and a tar",
            hint="pictures are JPEG, PNG, WebP, GIF, BMP, TIFF; manifests .csv, .jsonl, .parquet; tars .tar, .tar.gz",
        )
    unit = FileUnit(path, rules, path.name, kind, seen.stamp, seen.size_bytes, seen.changed_ns / 1e9, row)
    text, fields = path.with_suffix(TEXT_SUFFIX), path.with_suffix(JSON_SUFFIX)
    unit.text = text if kind != TEXT_TYPE and text.is_file() else None
    unit.fields = fields if fields.is_file() else None
    return unit
