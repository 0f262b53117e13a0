"""Sources: files on disk, found, sniffed and described, one `SourceFile` each.

A folder is walked to the bottom; pictures are known by their first bytes, never by their names. Captions come from a CSV file with the
columns ``file`` (path below the folder) and ``caption``; its other columns are attributes.

Takes: paths, a captions file, the collection's attribute types. Gives: files with ids and annotations. Owns: the ids: the path below the folder.
Never: decodes a picture, or reads a whole file before it is asked for.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts import canonical_json
from contracts.attributes import coerce_all
from contracts.errors import NotFoundError, RecordError, SettingsError
from contracts.media_record import TEXT_TYPE, picture_type

CAPTIONS_FILE = "captions.csv"
HEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to ingest: `item_id` is its path below the folder that was named, with forward slashes."""

    path: Path
    item_id: str
    content_type: str
    size_bytes: int
    caption: str | None = None
    attributes: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that is not ingested, or a row of the captions file without its file, and why."""

    name: str
    reason: str


@dataclass(slots=True)
class FoundFiles:
    """What a walk found. `unused_rows` are captions without their file; `other_files` counts files that are no pictures."""

    files: list[SourceFile] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    unused_rows: list[SkippedFile] = field(default_factory=list)
    other_files: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all files to ingest."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class _Row:
    caption: str | None
    attributes: Mapping[str, str]


def find_files(paths: Sequence[Path], captions: Path | None = None) -> FoundFiles:
    """Find what there is to ingest.

    Parameters
    ----------
    paths : Sequence of Path
        Folders (walked to the bottom; hidden files and linked folders are left out) and single files (pictures, or ``.txt`` texts).
    captions : Path, optional
        The captions file; each folder's own ``captions.csv`` where none is given.

    Returns
    -------
    FoundFiles
        Files by path; a captions row without its file is among `unused_rows`.

    Raises
    ------
    NotFoundError
        A path does not exist.
    SettingsError
        Two files would have one id, the captions file cannot be read, or a named file is nothing that we index.
    """
    found = FoundFiles()
    shared = None if captions is None else read_captions(captions)
    used: set[str] = set()
    for path in paths:
        if path.is_dir():
            used = used if shared is not None else set()
            rows = shared if shared is not None else _own_captions(path)
            _walk(path, rows, found, used)
            if shared is None:
                _note_unused(rows, used, path / CAPTIONS_FILE, found)
        elif path.exists():
            _single(path, shared or {}, found, used)
        else:
            raise NotFoundError(f"{path} does not exist", hint="name a folder or a file", code="path_not_found")
    if shared is not None and captions is not None:
        _note_unused(shared, used, captions, found)
    _refuse_twins(found.files)
    return found


def _own_captions(folder: Path) -> dict[str, _Row]:
    path = folder / CAPTIONS_FILE
    return read_captions(path) if path.is_file() else {}


def read_captions(path: Path) -> dict[str, _Row]:
    """Rows of a captions file by their ``file`` column.

    Raises
    ------
    SettingsError
        Not readable, not UTF-8, no ``file`` column, or a file named twice; the message names the line.
    """
    rows: dict[str, _Row] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            if "file" not in (reader.fieldnames or ()):
                raise SettingsError(f"{path}: no column `file` in the first line", hint="the columns are file, caption and attributes")
            for row in reader:
                _add_row(rows, row, f"{path}:{reader.line_num}")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}", hint="name a readable CSV file with --captions") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a CSV file in UTF-8: {error}", hint="save it as CSV, UTF-8") from None
    return rows


def _add_row(rows: dict[str, _Row], row: dict[Any, Any], where: str) -> None:
    if None in row or None in row.values():
        raise SettingsError(f"{where}: the line has another number of columns than the first", hint="put text with commas in double quotes")
    name = row.pop("file").replace("\\", "/").removeprefix("./")
    if not name:
        return
    if name in rows:
        raise SettingsError(f"{where}: {name!r} is named twice", hint="keep one line per file")
    caption = row.pop("caption", "") or None
    rows[name] = _Row(caption, {key: value for key, value in row.items() if value != ""})


def _walk(folder: Path, rows: Mapping[str, _Row], found: FoundFiles, used: set[str]) -> None:
    def unreadable(error: OSError) -> None:
        found.skipped.append(SkippedFile(str(error.filename), f"cannot be read: {error.strerror}"))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or (name == CAPTIONS_FILE and Path(parent) == folder):
                continue
            path = Path(parent) / name
            _add_file(path, path.relative_to(folder).as_posix(), rows, found, used)


def _add_file(path: Path, item_id: str, rows: Mapping[str, _Row], found: FoundFiles, used: set[str]) -> None:
    try:
        content_type, size_bytes = _look_at(path)
    except OSError as error:
        found.skipped.append(SkippedFile(str(path), f"cannot be read: {error.strerror}"))
        used.add(item_id)
        return
    if content_type is None:
        found.other_files += 1
        return
    row = rows.get(item_id)
    used.add(item_id)
    found.files.append(SourceFile(path, item_id, content_type, size_bytes, row.caption if row else None, row.attributes if row else None))


def _look_at(path: Path) -> tuple[str | None, int]:
    if not path.is_file():  # a socket or pipe would block
        return None, 0
    with path.open("rb") as file:
        return picture_type(file.read(HEAD_BYTES)) or None, path.stat().st_size


def _single(path: Path, rows: Mapping[str, _Row], found: FoundFiles, used: set[str]) -> None:
    try:
        content_type, size_bytes = _look_at(path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}", hint="check its permissions") from None
    if content_type is None and path.suffix.lower() == ".txt":
        content_type = TEXT_TYPE
    if content_type is None:
        raise SettingsError(f"{path} is neither a picture nor a .txt file", hint="JPEG, PNG, WebP, GIF, BMP and TIFF are indexed")
    row = rows.get(path.name)
    used.add(path.name)
    found.files.append(SourceFile(path, path.name, content_type, size_bytes, row.caption if row else None, row.attributes if row else None))


def _note_unused(rows: Mapping[str, _Row], used: set[str], where: Path, found: FoundFiles) -> None:
    found.unused_rows.extend(SkippedFile(name, f"named in {where}, but there is no such picture") for name in rows if name not in used)


def _refuse_twins(files: Sequence[SourceFile]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if file.item_id in seen:
            raise SettingsError(
                f"{seen[file.item_id]} and {file.path} would both have the id {file.item_id!r}", hint="name the folder that holds both, or run twice"
            )
        seen[file.item_id] = file.path


def typed_attributes(attributes: Mapping[str, str], schema: Mapping[str, str]) -> dict[str, Any]:
    """Attributes of a CSV row as JSON values of the collection's types; undeclared ones stay text.

    Raises
    ------
    RecordError
        ``bad_attributes``: a value does not have its type; the message names the attribute.
    """
    values: dict[str, Any] = {}
    for name, text in attributes.items():
        values[name] = _parsed(text, schema.get(name, "text"))
    try:
        coerce_all(values, schema)
    except ValueError as error:
        raise RecordError("bad_attributes", str(error)) from None
    return values


def _parsed(text: str, kind: str) -> Any:
    """A CSV cell as JSON where its type asks for more than text; what is no JSON stays text and fails the type check."""
    wants_json = kind in ("integer", "float", "bool", "geo") or (kind.endswith("[]") and text.lstrip().startswith("["))
    if not wants_json:
        return text
    try:
        return canonical_json.load(text.strip().lower() if kind == "bool" else text)
    except ValueError:
        return text


def read_files(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, bytes | SkippedFile]]:
    """Each file with its bytes, or with why they cannot be read."""
    for file in files:
        try:
            yield file, file.path.read_bytes()
        except OSError as error:
            yield file, SkippedFile(str(file.path), f"cannot be read: {error.strerror}")
