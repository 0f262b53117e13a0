"""Manifests: CSV, JSONL, Parquet, and JSONL on standard input; one row, one item (`ingest.row_item` says what the columns mean).

Takes: a file, the collection's rules. Gives: items row by row. Owns: how rows are read, and their count.
Never: ends at a broken row, or holds more than a few rows.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from contracts import canonical_json
from contracts.errors import SettingsError
from ingest.input_item import InputError, InputItem, InputRules, RejectedInput
from ingest.line_reader import LineReader, LineTooLongError
from ingest.row_item import CONTENT_COLUMNS, OWN_COLUMNS, item_of_row

CSV, JSONL, PARQUET = "CSV", "JSONL", "Parquet"
MANIFEST_SUFFIXES = {".csv": CSV, ".jsonl": JSONL, ".ndjson": JSONL, ".parquet": PARQUET}
STDIN = Path("-")
SHARED_ROWS = 1024
"""Rows with own vectors that share a record."""

_PARQUET_ROWS = 64  # read at a time: a row may hold a picture
_COLUMNS_HINT = "the columns are id, path, caption, text, attributes, acl, time; see docs/operations.md"

_Rows = Iterator[tuple[str, Mapping[str, Any] | InputError]]


@dataclass(slots=True)
class ManifestUnit:
    """A manifest as the one unit of its source (`ingest.input_item.InputUnit`)."""

    path: Path
    kind: str
    root: Path
    rules: InputRules
    name: str = ""
    stamp: str = ""
    size_bytes: int = 0
    changed_at: float = 0.0
    batch_rows: int = SHARED_ROWS
    position: Callable[[], int] = field(default=lambda: 0)

    def read(self, skip: int) -> Iterator[InputItem | RejectedInput]:
        """Items of the rows from the `skip`-th on."""
        try:
            for number, (name, row) in enumerate(self._rows()):
                if number >= skip:
                    yield self._entry(name, row)
        except OSError as error:
            yield RejectedInput(str(self.path), "unreadable", f"cannot be read any further: {error.strerror}")
        except SettingsError as error:  # it was good when it was checked, and has been written anew
            yield RejectedInput(str(self.path), "unreadable", error.message)

    def _entry(self, name: str, row: Mapping[str, Any] | InputError) -> InputItem | RejectedInput:
        try:
            if isinstance(row, InputError):
                raise row
            return item_of_row(row, name, self.rules, self.root, is_text=self.kind == CSV)
        except InputError as error:
            return RejectedInput(name, error.reason, error.message)

    def read_bytes(self) -> int:
        """Bytes of the manifest that are read so far."""
        return min(self.position(), self.size_bytes)

    def check(self) -> None:
        """Open the manifest and read what says that it is one.

        Raises
        ------
        SettingsError
            It cannot be opened, is not of its kind, or has no column with anything to index.
        """
        try:
            if self.kind == PARQUET:
                with _parquet(self.path) as file:
                    _check_columns(file.schema_arrow.names, self.path, self.rules)
            elif self.kind == CSV:
                with self.path.open("rb") as lines:
                    _csv_header(self.path, LineReader(lines, _line_limit(self.rules)), self.rules)
            else:
                self.path.open("rb").close()
        except OSError as error:
            raise SettingsError(f"{self.path}: cannot be read: {error.strerror}", hint="check the path and its permissions") from None

    def _rows(self) -> _Rows:
        if self.kind == PARQUET:
            yield from self._parquet_rows()
        elif self.path == STDIN:
            yield from self._json_rows(sys.stdin.buffer)
        else:
            with self.path.open("rb") as file:
                yield from self._csv_rows(file) if self.kind == CSV else self._json_rows(file)

    def _lines(self, file: BinaryIO) -> LineReader:
        lines = LineReader(file, _line_limit(self.rules))
        self.position = lambda: lines.read_bytes
        return lines

    def _json_rows(self, file: BinaryIO) -> _Rows:
        lines = self._lines(file)
        number = 0
        while True:
            number += 1
            name = f"{self.path}:{number}"
            try:
                line = next(lines).strip()
                if not line:
                    continue
                row = canonical_json.load(line.removeprefix(b"\xef\xbb\xbf"), _line_limit(self.rules))
            except StopIteration:
                return
            except ValueError as error:
                yield name, InputError("bad_row", str(error))
                continue
            yield name, row if isinstance(row, dict) else InputError("bad_row", "the line is not a JSON object")

    def _csv_rows(self, file: BinaryIO) -> _Rows:
        lines = self._lines(file)
        reader, columns = _csv_header(self.path, lines, self.rules)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, LineTooLongError) as error:
                yield f"{self.path}:{lines.number}", InputError("bad_row", str(error))
                continue
            name = f"{self.path}:{lines.number}"
            if len(row) == len(columns):
                yield name, dict(zip(columns, row, strict=True))
            elif row:
                yield name, InputError("bad_row", f"{len(row)} columns, not {len(columns)}; text with commas needs double quotes")

    def _parquet_rows(self) -> _Rows:
        row_count = done = 0
        try:
            with _parquet(self.path) as file:
                row_count = file.metadata.num_rows
                self.position = lambda: self.size_bytes * done // max(1, row_count)
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                    for row, values in enumerate(_parquet_values(batch)):
                        yield f"{self.path}: row {done + row + 1}", values
                    done += batch.num_rows
        except (pa.ArrowException, SettingsError, OSError, ValueError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield str(self.path), InputError("unreadable", f"rows from {done} of {row_count} on cannot be read: {said}")


def _line_limit(rules: InputRules) -> int:
    """A line may hold a picture in base64, and some more."""
    return rules.max_media_bytes * 4 // 3 + rules.max_text_bytes


def _check_columns(columns: list[str], path: Path, rules: InputRules) -> None:
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise SettingsError(f"{path}: two columns are named {twice[:60]!r}", hint="give each column a name of its own")
    if not set(columns) & {*CONTENT_COLUMNS, *rules.vector_fields}:
        raise SettingsError(f"{path}: no column with anything to index among {', '.join(columns)[:200]}", hint=_COLUMNS_HINT)


class _TextLines:
    """Lines of a file as text for the CSV reader; what is not UTF-8 is kept as lone surrogates, which a row's checks refuse."""

    def __init__(self, lines: LineReader) -> None:
        self._lines = lines

    def __iter__(self) -> _TextLines:
        return self

    def __next__(self) -> str:
        return next(self._lines).decode("utf-8", "surrogateescape")


def _csv_header(path: Path, lines: LineReader, rules: InputRules) -> tuple[Any, list[str]]:
    """CSV reader that stands behind the header, and the columns' names."""
    csv.field_size_limit(_line_limit(rules))
    reader = csv.reader(_TextLines(lines), strict=True)
    try:
        columns = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error, LineTooLongError):
        raise SettingsError(f"{path}: the first line does not name columns", hint=_COLUMNS_HINT) from None
    if columns:
        columns[0] = columns[0].removeprefix("\ufeff")
    _check_columns(columns, path, rules)
    return reader, columns


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"{path}: not a Parquet file: {said}", hint="name a file that was written as Parquet") from None


def _parquet_values(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a batch; columns of vectors stay numpy rows, which Python lists of floats would be many times."""
    columns = {name: _column_values(name, batch.column(name)) for name in batch.schema.names}
    for row in range(batch.num_rows):
        yield {name: values[row] for name, values in columns.items()}


def _column_values(name: str, column: pa.Array) -> list[Any]:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if is_list and pa.types.is_floating(kind.value_type) and name not in OWN_COLUMNS and not column.flatten().null_count:
        return [None if not value.is_valid else value.values.to_numpy(zero_copy_only=False) for value in column]
    return column.to_pylist()  # type: ignore[no-any-return]
